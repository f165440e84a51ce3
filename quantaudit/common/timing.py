"""Seconds by stage from the command to the first forward pass, as debug messages; `--debug` shows them on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LOG = logging.getLogger("quantaudit.common.timing")


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Log how long the context lasted, whether or not it succeeded."""
    start = perf_counter()
    try:
        yield
    finally:
        _log(stage, start)


def imports_done() -> None:
    """Log that what the command needs has been imported; the second at which it is shown says how long that took."""
    LOG.debug("all is imported")


def time_first_call(model: nn.Module, stage: str) -> None:
    """Log how long the model's next call takes. Its hooks remove themselves; without anyone to read it, adds none."""
    if not LOG.isEnabledFor(logging.DEBUG):
        return

    def before(_module: nn.Module, _args: Any) -> None:
        start = perf_counter()
        first.remove()

        def after(_module: nn.Module, _args: Any, _output: Any) -> None:
            last.remove()
            _log(stage, start)

        last = model.register_forward_hook(after)

    first = model.register_forward_pre_hook(before)


def show_timings() -> None:
    """Write every stage to stderr, and at which second since the start of the program it ended."""
    LOG.addHandler(_Stderr())
    LOG.setLevel(logging.DEBUG)
    LOG.propagate = False


def _log(stage: str, start: float) -> None:
    LOG.debug("%s took %.2f s", stage, perf_counter() - start)


class _Stderr(logging.Handler):
    """Writes to what is standard error at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        # Counted from the import of `logging`, which is among the first things that an interpreter does.
        print(f"debug: at {record.relativeCreated / 1000:6.2f} s, {record.getMessage()}", file=sys.stderr)
