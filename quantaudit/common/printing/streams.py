"""The standard streams of a command: there, whatever the shell left of them, and inert for what libraries print.

Results go to stdout: where they cannot be written, the command has failed. What goes to stderr accompanies it: where
that cannot be written, the command goes on.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any, TextIO

from quantaudit.common.printing.inert import inert_but_colors, without_colors
from quantaudit.errors import OutputError


def set_up_streams() -> None:
    """Open the streams that the shell closed, and put the filters before stdout and stderr."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _open_again(descriptor, mode)
    if isinstance(sys.stdout, _Guarded):
        return
    sys.stdin = sys.stdin or os.fdopen(0, "r", closefd=False)
    # Whoever writes to the stdout that was closed learns of it; to a file opened by chance as number 1 it must not go.
    sys.stdout = _Filtered(sys.stdout or os.fdopen(1, "w", closefd=False), results=True)
    sys.stderr = _Filtered(sys.stderr or os.fdopen(2, "w", closefd=False), results=False)


def write_results(text: str) -> None:
    """Write a document to stdout as UTF-8, whatever the terminal's encoding is: its readers are programs."""
    stream: Any = sys.stdout
    stream = getattr(stream, "guarded", stream)
    stream.flush()
    buffer = getattr(stream, "buffer", None)
    if buffer is None:  # a notebook's stream, or a test's
        stream.write(text)
    else:
        buffer.write(text.encode("utf-8", "replace"))
    stream.flush()


def _open_again(descriptor: int, mode: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, mode)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


class _Guarded:
    """A text stream whose failures to write have their consequences. results: whether that ends the command."""

    def __init__(self, stream: Any, *, results: bool) -> None:
        self._stream, self._results = stream, results
        if hasattr(stream, "reconfigure"):  # a character that a log cannot hold is no reason to end
            stream.reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> Any:
        """The stream of bytes below, guarded as well."""
        return _Guarded(self._stream.buffer, results=self._results)

    def write(self, text: Any) -> int:
        """Write, or bear it."""
        try:
            return int(self._stream.write(text) or 0)
        except OSError as error:
            self._fail(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or bear it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Raises SystemExit, or OutputError, for results; does nothing for the rest."""
        # What is still in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if not self._results:
            return
        if error.errno == errno.EPIPE:
            raise SystemExit(128 + signal.SIGPIPE)
        closed = error.errno == errno.EBADF
        raise OutputError(
            f"results cannot be written: {'it is closed' if closed else (error.strerror or str(error)).lower()}",
            where="standard output",
            hint="send them to a file on a disk with room, or to a terminal",
        ) from error


class _Filtered(_Guarded):
    """A guarded stream that writes inert text only. guarded: the same without that, for who sees to it itself."""

    def __init__(self, stream: TextIO, *, results: bool) -> None:
        super().__init__(stream, results=results)
        self.guarded = _Guarded(stream, results=results)

    @property
    def unfiltered(self) -> Any:
        """For consoles, which make their texts inert and move the cursor themselves."""
        return self.guarded

    def write(self, text: Any) -> int:
        """Write what has been made inert; libraries color their warnings for logs too."""
        colored = inert_but_colors(text)
        return super().write(colored if self._stream.isatty() else without_colors(colored))
