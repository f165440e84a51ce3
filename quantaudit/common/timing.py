"""Seconds by stage from the command to the first forward pass, as debug messages; `--debug` shows them on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, time

LOG = logging.getLogger("quantaudit.common.timing")


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Log how long the context lasted, whether or not it succeeded."""
    start = perf_counter()
    try:
        yield
    finally:
        log_duration(stage, start)


def seconds_since_start() -> float:
    """Since this process began."""
    import psutil  # which the start of every command need not wait for

    return max(0.0, time() - float(psutil.Process().create_time()))


def imports_done() -> None:
    """Log that what the command needs has been imported; the second at which it is shown says how long that took."""
    LOG.debug("all is imported")


def is_shown() -> bool:
    """Whether anyone reads these messages."""
    return LOG.isEnabledFor(logging.DEBUG)


def show_timings() -> None:
    """Write every stage to stderr, once, and at which second since the start of the program it ended."""
    if not any(isinstance(handler, _Stderr) for handler in LOG.handlers):
        LOG.addHandler(_Stderr())
    LOG.setLevel(logging.DEBUG)
    LOG.propagate = False


def hide_timings() -> None:
    """Undo `show_timings`, so that the next command of this process says nothing of its stages."""
    for handler in [handler for handler in LOG.handlers if isinstance(handler, _Stderr)]:
        LOG.removeHandler(handler)
        LOG.setLevel(logging.NOTSET)
        LOG.propagate = True


def log_duration(stage: str, start: float) -> None:
    """Log that a stage that began at `start`, a reading of `perf_counter`, has ended."""
    LOG.debug("%s took %.2f s", stage, perf_counter() - start)


class _Stderr(logging.Handler):
    """Writes to what is standard error at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        # Counted from the import of `logging`, which is among the first things that an interpreter does.
        print(f"debug: at {record.relativeCreated / 1000:6.2f} s, {record.getMessage()}", file=sys.stderr)
