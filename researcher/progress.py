"""What a person sees while a run goes on: a row for each hospital and a bar of rounds.

On a terminal the picture is drawn in place; elsewhere (a log, a pipe) one plain line is
written for each change. Both go to `sys.stdout` as it is when the display is made, which
`--json` has moved to stderr.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from common.text import escape
from common.views import RoundView, RunPhase, RunView, SiteView

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

_BAR_WIDTH: Final = 40
_GOOD: Final = frozenset({"CLOSED", "OPENED"})
_STATE_STYLES: Final = {
    "refused": "red",
    "withdrawn": "red",
    "waiting": "yellow",
    "dropped": "red",
    "away": "red",
    "training": "yellow",
    "uploading": "cyan",
    "uploaded": "cyan",
    "committed": "cyan",
    "released": "green",
    "accepted": "green",
    "ready": "green",
}


class Display(Protocol):
    """Shows steps of preparation, then views of a run."""

    def step(self, text: str) -> None:
        """Say what is being done now."""
        ...

    def show(self, view: RunView) -> None:
        """Show a run as it is now."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def display(title: str) -> Display:
    """Return the display that fits where output goes."""
    return LiveDisplay(title) if sys.stdout.isatty() else LineDisplay()


class LineDisplay:
    """One line a change, for logs and pipes."""

    def __init__(self) -> None:
        self._out = sys.stdout
        self._state: RunPhase | None = None
        self._rounds = 0
        self._sites: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._out.flush()

    def _line(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def step(self, text: str) -> None:
        """See `Display`."""
        self._line(text)

    def show(self, view: RunView) -> None:
        """See `Display`."""
        if view.state is not self._state:
            self._state = view.state
            reason = f": {escape(view.reason)}" if view.reason else ""
            self._line(f"run {escape(view.run_id)} {view.state.value}{reason}")
        for site in view.sites:
            self._note(site)
        for entry in view.history[self._rounds :]:
            self._line(round_line(entry, view.rounds))
        self._rounds = len(view.history)

    def _note(self, site: SiteView) -> None:
        """Say when a hospital comes, goes or objects; not each step of each round."""
        if site.state == "withdrawn":
            words = f"withdrawn: {escape(site.objection)}"
        elif site.objection.startswith("POLICY_HOURS: "):  # no decision: it goes on by itself
            words = f"waits: {escape(site.objection)}"
        elif site.objection:
            words = f"refused: {escape(site.objection)}"
        elif site.people:
            words = f"waits for {escape(site.waiting_for)}"
        else:
            words = "connected" if site.connected else "not connected"
        if self._sites.get(site.site) != words:
            self._sites[site.site] = words
            self._line(f"hospital {escape(site.site)} {words}")


def round_line(entry: RoundView, rounds: int) -> str:
    """Return one line about a round that ended."""
    words = f"round {entry.number} of {rounds} ({escape(entry.kind)}) {escape(entry.state)}"
    words += f" with {len(entry.survivors)} hospitals in {entry.seconds:.2f} s"
    if entry.dropped:
        words += f", without {escape(', '.join(entry.dropped))}"
    if entry.reason:
        words += f": {escape(entry.reason)}"
    return words


class LiveDisplay:
    """The picture on a terminal, redrawn a few times a second."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._steps: list[str] = []
        self._view: RunView | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(self._picture(), console=Console(file=sys.stdout), refresh_per_second=10)
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self._picture())
            self._live.__exit__(kind, error, trace)

    def step(self, text: str) -> None:
        """See `Display`."""
        self._steps.append(text)
        self._redraw()

    def show(self, view: RunView) -> None:
        """See `Display`."""
        self._view = view
        self._redraw()

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.update(self._picture())

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        parts: list[object] = [Text(self._title, style="bold")]
        parts += [
            Text(f"  {'-' if step is self._steps[-1] else '+'} {step}", style="dim")
            for step in self._steps[-3:]
        ]
        if self._view is not None:
            parts += [_sites(self._view), _rounds(self._view)]
        return Group(*parts)  # type: ignore[arg-type] # renderables have no common class


def _sites(view: RunView) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("hospital", "state", "rounds", "waiting for"):
        table.add_column(head, header_style="dim")
    for site in view.sites:
        joined = sum(site.site in entry.survivors for entry in view.history)
        state = site.state if site.connected else "away"
        style = next((s for word, s in _STATE_STYLES.items() if word in state.lower()), "")
        table.add_row(
            Text(site.site, style="bold"),
            Text(escape(state), style=style),
            str(joined),
            Text(escape(site.objection or site.waiting_for), style="dim"),
        )
    return table


def _rounds(view: RunView) -> object:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done = sum(entry.state in _GOOD for entry in view.history)
    if view.state is RunPhase.FINISHED:
        done = view.rounds
    grid = Table.grid(padding=(0, 1))
    words = view.state.value
    if view.history:
        last = view.history[-1]
        words += f"   last round {last.seconds:.2f} s, {len(last.survivors)} hospitals"
    grid.add_row(
        Text(f"round {min(max(view.round, done), view.rounds)} of {view.rounds}"),
        ProgressBar(total=max(view.rounds, 1), completed=done, width=_BAR_WIDTH),
        Text(words, style="dim"),
    )
    return grid
