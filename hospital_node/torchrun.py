"""torchrun that ends with whoever started it, however that went.

python -m hospital_node.torchrun ARGUMENTS OF TORCHRUN
"""

from __future__ import annotations

import ctypes
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    from torch.distributed.run import main

    main()
