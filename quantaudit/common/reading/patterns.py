"""Whether regular expressions can be matched with names in reasonable time, found out before anybody else matches them.

Python's `re`, which compressed-tensors, llm-compressor and the engines use, backtracks: a few characters such as
`(([a-z_.])+)+!` take longer than the universe on an ordinary name. Another engine would give quick answers here, and
leave `oneshot` to hang; so the patterns are tried with `re` itself, in a process that is stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from quantaudit.common.reading import pattern_child

SECONDS = 1.0
"""Processor time for all patterns, in addition to that for each match."""
SECONDS_A_MATCH = 5e-6
"""Of one pattern with one name; an ordinary one takes a tenth of it."""
_WALL = 10
"""How much longer than its processor time the process may take on a busy machine."""
PREFIX = "re:"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowPattern:
    """A regular expression that takes too long. name: what it was matched with; seconds: the limit that it passed."""

    text: str
    name: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"the regular expression `{_short(self.text)}` backtracks: matching `{_short(self.name)}` takes "
            f"more than {self.seconds:.1f} s"
        )


def slow_pattern(targets: Iterable[str], names: Iterable[str]) -> SlowPattern | None:
    """The worst of the targets that are regular expressions (`re:…`), where they take too long with these names.

    None where all are matched in time. Others are left out, as is what is no regular expression.
    """
    patterns = tuple(dict.fromkeys(text.removeprefix(PREFIX) for text in targets if text.startswith(PREFIX)))
    return _tried(patterns, tuple(names)) if patterns else None


@lru_cache(maxsize=32)
def _tried(patterns: tuple[str, ...], names: tuple[str, ...]) -> SlowPattern | None:
    seconds = SECONDS + SECONDS_A_MATCH * len(patterns) * len(names)
    job = json.dumps({"patterns": patterns, "names": names, "seconds": seconds})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(pattern_child.__file__))],
            input=job.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds * _WALL,
        )
        lines = done.stdout.split(b"\n")
    except subprocess.TimeoutExpired as error:
        lines = (error.stdout or b"0").split(b"\n")
    words = next((line.split() for line in reversed(lines) if line.strip()), [b"0"])
    if words == [b"done"]:
        return None
    # A process that ended without a word ran out of time, or of memory, in the pattern that it named last.
    pattern, name = (int(words[1]), int(words[2])) if words[0] == b"slow" else (int(words[0]), 0)
    return SlowPattern(text=patterns[pattern], name=names[name] if names else "", seconds=seconds)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
