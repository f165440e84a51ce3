"""Reads a corpus: the built-in one, a JSONL, text or Parquet file, a dataset folder, or a dataset of the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantaudit.common.reading.corpus_files import read_lines, read_whole
from quantaudit.common.reading.json_document import parse_json
from quantaudit.common.reading.regular_files import special_kind
from quantaudit.corpus import stream
from quantaudit.corpus.normalize import CONTENTS, SHAPE, check_columns, columns, made_of, normalize
from quantaudit.corpus.rows import CorpusRow, Message, digest, parse_row
from quantaudit.corpus.spec import parse
from quantaudit.errors import CorpusError

__all__ = ["BUILTIN", "SUFFIXES", "Corpus", "CorpusRow", "Message", "load_corpus"]

BUILTIN = Path(__file__).with_name("builtin")
SUFFIXES = (".jsonl", ".json", ".txt", ".parquet", ".jsonl.gz", ".json.gz", ".txt.gz")


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
        rows = [row for file in sorted(BUILTIN.glob("*.jsonl")) for row in _read(file, None)[0]]
        return _corpus(spec, "quantaudit built-in", rows)
    parsed = parse(spec)
    path = parsed.path
    suffix = _suffix(path)
    if path.is_dir() or (parsed.hub and suffix is None):
        read = stream.read(parsed, samples or stream.SAMPLES, seed)
        return _corpus(spec, read.name, read.rows, read.revision, read.notes)
    if not path.is_file():
        kind = special_kind(path)
        raise CorpusError(
            "no such corpus file" if kind is None else f"{kind}, not a file",
            where=spec,
            hint=f"`builtin`, a file ending in {', '.join(SUFFIXES)}, a folder with a dataset, or a Hub id `org/name`",
        )
    if suffix is None:
        raise CorpusError("unknown kind of corpus file", where=spec, hint=f"it must end in {', '.join(SUFFIXES)}")
    if parsed.config or parsed.split or (parsed.column and suffix.startswith(".txt")):
        raise CorpusError(
            "a file has neither configurations nor splits",
            where=spec,
            hint=f"give {parsed.place}, or {parsed.place}:::COLUMN for another column of a .jsonl or .parquet file",
        )
    rows, notes = _read(path, parsed.column)
    return _corpus(spec, path.name, rows, notes=notes)


def _suffix(path: Path) -> str | None:
    """The ending that says how a file is read, whatever its case; None for others."""
    return next((suffix for suffix in reversed(SUFFIXES) if path.name.lower().endswith(suffix)), None)


def _corpus(
    spec: str, name: str, rows: Sequence[CorpusRow], revision: str | None = None, notes: Sequence[str] = ()
) -> Corpus:
    if len(rows) < 2:
        raise CorpusError(
            "corpus is empty" if not rows else "corpus has one sample only",
            where=spec,
            hint="give at least two samples: one to calibrate on and one to evaluate on",
        )
    return Corpus(spec=spec, name=name, sha256=digest(rows), rows=tuple(rows), revision=revision, notes=tuple(notes))


def _read(path: Path, column: str | None) -> tuple[list[CorpusRow], list[str]]:
    """All rows of a file, and notes on how their content was made."""
    table = _suffix(path) == ".parquet"
    how = f"{path}:::COLUMN"
    rows, contents = [], []
    for number, raw in _parquet(path, column) if table else _records(path):
        where = f"{path}:{number}"
        content = normalize(raw, column, where=where, how=how)
        several = isinstance(content.fields, dict) and sum(bool(content.fields.get(name)) for name in CONTENTS) > 1
        hint = f"{SHAPE}; {'leave one of them out, or ' if several else ''}choose the column for all rows: {how}"
        rows.append(parse_row(content.fields, where=where, folder=None if table else path.parent, hint=hint))
        contents.append(content)
    return rows, [*made_of(contents), *(_unread_images(path, column) if table else [])]


def _unread_images(path: Path, column: str | None) -> list[str]:
    from pyarrow import parquet

    return stream.unread_images(parquet.read_schema(path).names, column)


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, record) for every line or row that is not empty."""
    if (suffix := str(_suffix(path))).startswith(".json") and not suffix.startswith(".jsonl"):
        records = _json(read_whole(path), str(path), "one JSON list of rows")
        if not isinstance(records, list):
            raise CorpusError(
                "not a list of rows", where=str(path), hint="one JSON list of rows, or .jsonl: one a line"
            )
        yield from enumerate(records, start=1)
        return
    for number, line in read_lines(path):
        if line.strip():
            yield (
                number,
                {"text": line} if ".txt" in suffix else _json(line, f"{path}:{number}", "one JSON object a line"),
            )


def _json(text: str, where: str, hint: str) -> Any:
    try:
        return parse_json(text, unique=True)
    except ValueError as error:
        reason = getattr(error, "msg", str(error))
        raise CorpusError(f"not JSON: {reason}", where=where, hint=hint) from error


def _parquet(path: Path, column: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows unmodified, read batch by batch and only the columns that count."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_columns(names, column, where=str(path), how=f"{path}:::COLUMN")
            rows = (row for batch in file.iter_batches(columns=columns(names, column)) for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # names that are no UTF-8 among them
        raise CorpusError(
            f"cannot be read as Parquet: {error}", where=str(path), hint="write it again, or give a .jsonl file"
        ) from error
