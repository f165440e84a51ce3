"""Text files of any size, gzipped or not, line by line: no line and no unpacked file may grow without end."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantaudit.common.reading.regular_files import check_regular
from quantaudit.errors import CorpusError

LINE = 32 << 20
"""Characters of one line, which is one sample."""
WHOLE = 1 << 30
"""Characters of a file that is read at once, since it is one JSON list."""
UNPACKED = 256 << 20
"""Bytes up to which a gzip file may unpack to however many times its size."""
RATIO = 200
"""Unpacked bytes for each stored one beyond that; text has 3 to 20, zeros have 1,000."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of every line. Raises CorpusError.

    Only line feeds and carriage returns end a line: str.splitlines would also break at separators that JSON strings may
    hold. Editors on Windows begin a file with a mark, which is no text; files that were joined have marks inside.
    """
    with _opened(path) as (text, packed):
        number = 0
        while line := text.readline(LINE + 2):
            number += 1
            line = line.removesuffix("\n")
            if len(line) > LINE:
                raise CorpusError(
                    f"a line of more than {LINE:,} characters",
                    where=f"{path}:{number}",
                    hint="write one sample a line; samples are cut to --max-length tokens anyway",
                )
            packed.check()
            yield number, line.lstrip("\ufeff")


def read_whole(path: Path) -> str:
    """The text of a file. Raises CorpusError."""
    with _opened(path) as (text, _):
        content = text.read(WHOLE + 1)
    if len(content) > WHOLE:
        raise CorpusError(
            f"more than {WHOLE:,} characters in one JSON list",
            where=str(path),
            hint="write it as .jsonl, one row a line, which is read line by line",
        )
    return content


class _Packed:
    """How far a file has been unpacked. stored: its size in bytes; None for a file that is not packed."""

    def __init__(self, path: Path, unpacked: gzip.GzipFile | None, stored: int) -> None:
        self.path, self.unpacked, self.stored = path, unpacked, stored

    def check(self) -> None:
        """Raises CorpusError where it has unpacked to more than any text does."""
        if self.unpacked is None:
            return
        size = self.unpacked.tell()
        if size > UNPACKED and size > RATIO * self.stored:
            raise CorpusError(
                f"its {self.stored:,} bytes unpack to more than {RATIO} times as many",
                where=str(self.path),
                hint="unpack it and look at it: no text is that repetitive",
            )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.TextIOWrapper, _Packed]]:
    packed = path.name.lower().endswith(".gz")
    try:
        stored = check_regular(path)
        with path.open("rb") as file:
            unpacked = gzip.GzipFile(fileobj=file) if packed else None
            with io.TextIOWrapper(unpacked or file, encoding="utf-8-sig") as text:
                yield text, _Packed(path, unpacked, stored)
    except UnicodeDecodeError as error:
        raise CorpusError(f"cannot be read as UTF-8: {error}", where=str(path), hint="save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        hint = "it must be a whole gzip file, or end otherwise" if packed else "check it"
        raise CorpusError(f"cannot be read: {error}", where=str(path), hint=hint) from error
