"""Reads a corpus: the built-in one, a JSONL, text or Parquet file, a dataset folder, or a dataset of the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantaudit.corpus import stream
from quantaudit.corpus.rows import CorpusRow, Message, parse_row
from quantaudit.corpus.spec import parse
from quantaudit.corpus.tables import choose, columns, record
from quantaudit.errors import CorpusError

__all__ = ["BUILTIN", "SUFFIXES", "Corpus", "CorpusRow", "Message", "load_corpus"]

BUILTIN = Path(__file__).with_name("builtin")
SUFFIXES = (".jsonl", ".txt", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Rows in the order in which they were read. sha256: over their content, domains and splits.

    revision: the commit of a Hub dataset; notes: what reading left out.
    """

    spec: str
    name: str
    sha256: str
    rows: tuple[CorpusRow, ...]
    revision: str | None = None
    notes: tuple[str, ...] = field(default=())


def load_corpus(spec: str, *, samples: int | None = None, seed: int = 0) -> Corpus:
    """Read `builtin`, a file, a dataset folder or a Hub dataset.

    samples, seed: how many rows of a dataset are read, and in which order; files are read whole. Raises CorpusError
    when it is missing, out of reach, empty, or has a row that cannot be used.
    """
    if spec == "builtin":
        files = sorted(BUILTIN.glob("*.jsonl"))
        rows = [row for file in files for row in _read(file, None)]
        return _corpus(spec, "quantaudit built-in", rows)
    parsed = parse(spec)
    path = parsed.path
    if path.is_dir() or (parsed.hub and path.suffix not in SUFFIXES):
        read = stream.read(parsed, samples or stream.SAMPLES, seed)
        return _corpus(spec, read.name, read.rows, read.revision, read.notes)
    if not path.is_file():
        raise CorpusError(
            "no such corpus file",
            where=spec,
            hint=f"`builtin`, a file ending in {', '.join(SUFFIXES)}, a folder with a dataset, or a Hub id `org/name`",
        )
    if path.suffix not in SUFFIXES:
        raise CorpusError("unknown kind of corpus file", where=spec, hint=f"it must end in {', '.join(SUFFIXES)}")
    if parsed.config or parsed.split or (parsed.column and path.suffix == ".txt"):
        raise CorpusError(
            "a file has neither configurations nor splits",
            where=spec,
            hint=f"give {parsed.place}, or {parsed.place}:::COLUMN for another column of a .jsonl or .parquet file",
        )
    return _corpus(spec, path.name, list(_read(path, parsed.column)))


def _corpus(
    spec: str, name: str, rows: Sequence[CorpusRow], revision: str | None = None, notes: Sequence[str] = ()
) -> Corpus:
    if len(rows) < 2:
        raise CorpusError(
            "corpus is empty" if not rows else "corpus has one sample only",
            where=spec,
            hint="give at least two samples: one to calibrate on and one to evaluate on",
        )
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.model_dump_json(exclude={"id"}, exclude_none=True).encode() + b"\n")
    return Corpus(
        spec=spec, name=name, sha256=digest.hexdigest(), rows=tuple(rows), revision=revision, notes=tuple(notes)
    )


def _read(path: Path, column: str | None) -> Iterator[CorpusRow]:
    images = path.parent if path.suffix == ".jsonl" else None
    for number, found in _records(path, column):
        where = f"{path}:{number}"
        if path.suffix == ".parquet" or (column and isinstance(found, dict)):
            found = record(found, choose(list(found), column, where=where, how=f"{path}:::COLUMN"), where=where)
        yield parse_row(found, where=where, folder=images)


def _records(path: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, record) for every non-empty line or row."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path, column), start=1)
        return
    try:
        # Editors on Windows begin a file with a byte order mark, which is no text.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot be read as UTF-8: {error}", where=str(path), hint="save it as UTF-8") from error
    # Only \n ends a line: str.splitlines would also break at separators that JSON strings may hold.
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for number, line in lines:
        if path.suffix == ".txt":
            yield number, {"text": line}
            continue
        try:
            yield number, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise CorpusError(f"not JSON: {reason}", where=f"{path}:{number}", hint="one JSON object a line") from error


def _parquet(path: Path, column: str | None) -> Iterator[dict[str, Any]]:
    """Rows as they are, read batch by batch and only the columns that count."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            choose(names, column, where=str(path), how=f"{path}:::COLUMN")
            for batch in file.iter_batches(columns=columns(names, column)):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(
            f"cannot be read as Parquet: {error}", where=str(path), hint="write it anew, or give a .jsonl file"
        ) from error
