"""A command whose second rank gets SIGKILL after so many finished units.

torchrun --nproc-per-node 2 -m tests.killed_rank UNITS report …
"""

from __future__ import annotations

import os
import signal
import sys

from quantaudit.cli import main
from quantaudit.common.outputs.resume import RunState


def die_after(units: int) -> None:
    """Have this process die when it keeps one more."""
    put, kept = RunState.put, 0

    def counted(state: RunState, key: str, data: bytes) -> None:
        nonlocal kept
        if kept == units:
            os.kill(os.getpid(), signal.SIGKILL)
        kept += 1
        put(state, key, data)

    RunState.put = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    count = int(sys.argv.pop(1))
    if os.environ["RANK"] == "1":
        die_after(count)
    main()
