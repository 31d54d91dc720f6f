"""`fedcare node health`: asks the node of this machine; runs often, so it loads little."""

from __future__ import annotations

from pathlib import Path

from common.commands import Outcome
from common.errors import ConnectError
from common.health import outcome
from common.transport.ask import LINK, WHOLE, ask_in


async def ask(state_dir: Path, *, link: bool) -> Outcome:
    """Ask the node of a state directory how it is; `link`: how its session is.

    Raises:
        ConnectError: UNREACHABLE, no node runs there, or it has only just begun.
    """
    what = "the node's session with the coordinator" if link else f"the node of {state_dir}"
    try:
        return outcome(what, await ask_in(state_dir, LINK if link else WHOLE))
    except ConnectError:
        from hospital_node.store import is_locked

        if is_locked(state_dir):
            raise ConnectError(
                "UNREACHABLE",
                f"the node of {state_dir} is starting or stopping just now",
                fix="Ask again in a second.",
            ) from None
        raise ConnectError(
            "UNREACHABLE",
            f"no node is running in {state_dir}",
            fix="Start it with `fedcare node serve`; its log says why it stopped.",
        ) from None
