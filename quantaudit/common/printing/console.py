"""Rich consoles whose text is inert: what Rich itself sends to a terminal passes, escapes in what it prints do not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console
from rich.segment import Segment

from quantaudit.common.printing.inert import inert


class InertConsole(Console):
    """Prints every text inertly. It goes on where nobody reads any more: a run is not worth less for it."""

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        """What is to be printed, its texts inert. Colors and the movements of bars are no text."""
        for segment in super().render(*args, **options):
            text = segment.text if segment.control else inert(segment.text)
            yield segment if text is segment.text else Segment(text, segment.style)

    @property
    def file(self) -> IO[str]:
        """The stream, without the filter for text of others that stands before it."""
        stream = super().file
        unfiltered: IO[str] = getattr(stream, "unfiltered", stream)
        return unfiltered

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def on_broken_pipe(self) -> None:
        """Print no more."""
        self.quiet = True


class ResultsConsole(InertConsole):
    """Ends quietly where nobody reads the results, as programs do that a closed pipe stops."""

    def on_broken_pipe(self) -> None:
        """Raises SystemExit with the code of a program that a closed pipe stops."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE)
