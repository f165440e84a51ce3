"""Reads a corpus: the built-in one, or a JSONL, text or Parquet file. A row is text, a chat, or token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from quantaudit.errors import CorpusError
from quantaudit.provenance import explain

BUILTIN = Path(__file__).with_name("builtin")
SUFFIXES = (".jsonl", ".txt", ".parquet")
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_SHAPE = 'a row is {"text": …}, {"messages": [{"role": …, "content": …}]} or {"input_ids": […]}'


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="allow", frozen=True)
    role: str
    content: str


class CorpusRow(BaseModel):
    """One sample as written: exactly one of text, messages, input_ids. Other columns are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    text: str | None = None
    messages: list[Message] | None = None
    input_ids: list[TokenId] | None = None
    id: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)] = None
    domain: str = "unlabelled"
    split: Literal["calibration", "evaluation"] | None = None

    @model_validator(mode="after")
    def _one_content(self) -> CorpusRow:
        filled = [name for name in ("text", "messages", "input_ids") if getattr(self, name)]
        if len(filled) != 1 or (self.text and not self.text.strip()):
            raise ValueError(f"it has {' and '.join(filled) if len(filled) > 1 else 'no text'}")
        try:
            self.model_dump_json()
        except PydanticSerializationError as error:
            raise ValueError("it holds half of a surrogate pair, which is not text") from error
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Rows in file order. sha256: over their content, domains and splits."""

    spec: str
    name: str
    sha256: str
    rows: tuple[CorpusRow, ...]


def load_corpus(spec: str) -> Corpus:
    """Read `builtin` or a file. Raises CorpusError when it is missing, empty, or has a row that cannot be used."""
    if spec == "builtin":
        files = sorted(BUILTIN.glob("*.jsonl"))
        rows = [row for file in files for row in _read(file)]
        return _corpus(spec, "quantaudit built-in", rows)
    path = Path(spec).expanduser()
    if not path.is_file():
        raise CorpusError(
            "no such corpus file", where=spec, hint=f"`builtin`, or a file ending in {', '.join(SUFFIXES)}"
        )
    if path.suffix not in SUFFIXES:
        raise CorpusError("unknown kind of corpus file", where=spec, hint=f"it must end in {', '.join(SUFFIXES)}")
    return _corpus(spec, path.name, list(_read(path)))


def _corpus(spec: str, name: str, rows: list[CorpusRow]) -> Corpus:
    if len(rows) < 2:
        raise CorpusError(
            "corpus is empty" if not rows else "corpus has one sample only",
            where=spec,
            hint="give at least two samples: one to calibrate on and one to evaluate on",
        )
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.model_dump_json(exclude={"id"}, exclude_none=True).encode() + b"\n")
    return Corpus(spec=spec, name=name, sha256=digest.hexdigest(), rows=tuple(rows))


def _read(path: Path) -> Iterator[CorpusRow]:
    for number, record in _records(path):
        try:
            yield CorpusRow.model_validate(record)
        except ValidationError as error:
            raise CorpusError(f"row cannot be used: {explain(error)}", where=f"{path}:{number}", hint=_SHAPE) from error


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, record) for every non-empty line or row."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), start=1)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot be read as UTF-8: {error}", where=str(path)) from error
    # Only \n ends a line: str.splitlines would also break at separators that JSON strings may hold.
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for number, line in lines:
        if path.suffix == ".txt":
            yield number, {"text": line}
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"not JSON: {error.msg}", where=f"{path}:{number}", hint="one JSON object a line"
            ) from error


def _parquet(path: Path) -> Iterable[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"cannot be read as Parquet: {error}", where=str(path)) from error
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
