"""One sample as written: text, a chat, or token ids; text and chats may come with images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from quantaudit.common.reading.regular_files import check_regular
from quantaudit.corpus.normalize import CONTENTS, SHAPE
from quantaudit.errors import CorpusError
from quantaudit.provenance import Split, explain

PIXELS = 100_000_000
"""Of one image; a file of a few kilobytes can unpack to any number of them."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


_SILENT = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""What a turn may hold in place of content."""


class TextPart(BaseModel):
    """A piece of text in a turn that has images too."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """The place of an image in a turn; the images themselves are listed by the row, in order."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    type: Literal["image"]


class Message(BaseModel):
    """One turn of a chat. Content may be missing where the assistant calls tools or only thinks."""

    model_config = ConfigDict(extra="allow", frozen=True)
    role: str
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not any((self.model_extra or {}).get(name) for name in _SILENT):
            raise ValueError("the turn has neither `content` nor `tool_calls`")
        if not all(isinstance(call, dict) for call in self.tool_calls):
            raise ValueError("a call is no object {function: {name, arguments}}")
        return self

    @property
    def tool_calls(self) -> list[Any]:
        """The calls of the turn; it has them next to its declared fields, as all that only templates read."""
        calls = (self.model_extra or {}).get("tool_calls") or []
        return list(calls) if isinstance(calls, list) else [calls]


class Picture(BaseModel):
    """An image file. Its content counts, and not where it lies."""

    model_config = ConfigDict(frozen=True)
    path: Path = Field(exclude=True)
    sha256: str


class CorpusRow(BaseModel):
    """One sample as written: exactly one of text, messages, input_ids. Other columns are ignored.

    tools: those offered in a chat, as its template is given them; dropped where the sample is no chat.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    text: str | None = None
    messages: list[Message] | None = None
    input_ids: list[TokenId] | None = None
    tools: list[dict[str, Any]] | None = None
    id: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)] = None
    domain: str = "unlabelled"
    split: Split | None = None
    pictures: tuple[Picture, ...] | None = None

    @model_validator(mode="after")
    def _one_content(self) -> CorpusRow:
        filled = [name for name in CONTENTS if getattr(self, name)]
        if len(filled) != 1 or (self.text and not self.text.strip()):
            raise ValueError(f"it has {' and '.join(filled) if len(filled) > 1 else 'no text'}")
        if self.pictures and self.input_ids:
            raise ValueError("an image stands next to text or in messages, not next to token ids")
        try:
            self.model_dump_json()
        except PydanticSerializationError as error:
            raise ValueError("it holds half of a surrogate pair, which is not text") from error
        return self

    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that a chat offers; None for other samples, and where there are none."""
        return (self.tools or None) if self.messages else None

    def canonical(self, *, labels: bool) -> bytes:
        """The content as JSON, the same for the same sample in whatever format; with domain and split, or without.

        The order of a call's or a tool's own fields says nothing: tables have one order for all rows.
        """
        content = {"text", "messages", "input_ids", *(("domain", "split", "pictures") if labels else ())}
        content_fields = self.model_dump(mode="json", include=content, exclude_none=True)
        if "messages" in content_fields:
            content_fields["messages"] = [_ordered(turn) for turn in content_fields["messages"]]
        tools = self.offered()
        line = _compact(content_fields) + ("" if tools is None else "\n" + _compact(tools, sort_keys=True))
        return line.encode()


def digest(rows: Sequence[CorpusRow]) -> str:
    """SHA-256 over the content, domain and split of samples in their order: of what they are, not of where they lie."""
    sha256 = hashlib.sha256()
    for row in rows:
        sha256.update(row.canonical(labels=True) + b"\n")
    return sha256.hexdigest()


def _ordered(turn: dict[str, Any]) -> dict[str, Any]:
    declared = {name: turn[name] for name in ("role", "content") if name in turn}
    more = {name: item for name, item in turn.items() if name not in declared}
    ordered: dict[str, Any] = json.loads(_compact(more, sort_keys=True))
    return declared | ordered


def _compact(value: Any, *, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)


def parse_row(record: Any, *, where: str, folder: Path | None = None, hint: str = SHAPE) -> CorpusRow:
    """A record as a row. folder: what the paths of its images are relative to; None where there can be no images.

    Raises CorpusError naming `where`.
    """
    if isinstance(record, dict):
        record = {key: value for key, value in record.items() if key != "pictures"}
        paths = list(_take_images(record, where)) if folder is not None else []
        if folder is not None and paths:
            record["pictures"] = [_picture(folder / path, where) for path in paths]
    try:
        row = CorpusRow.model_validate(record)
    except ValidationError as error:
        raise CorpusError(f"row cannot be used: {explain(error)}", where=where, hint=hint) from error
    if folder is None and any(part.type == "image" for turn in row.messages or () for part in _parts(turn)):
        raise CorpusError(
            "a chat has images, which are read from .jsonl files only",
            where=where,
            hint='write a .jsonl file with {"type": "image", "image": PATH} in `content`',
        )
    return row


def _parts(message: Message) -> list[TextPart | ImagePart]:
    return [] if isinstance(message.content, str) else list(message.content or ())


def _take_images(record: dict[str, Any], where: str) -> Iterator[str]:
    """Paths of a record's images, in order: its `image`, then those in its messages."""
    places = [record.get("image")] if record.get("image") is not None else []
    messages = record.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        places += [part.get("image", part.get("path")) for part in parts if part.get("type") == "image"]
    if record.get("image") is not None and record.get("messages"):
        raise CorpusError(
            "`image` stands next to `text`",
            where=where,
            hint='in a chat: {"type": "image", "image": PATH} in `content`',
        )
    for place in places:
        if not isinstance(place, str) or "://" in place:
            raise CorpusError(
                f"an image is no path but {str(place)[:60]!r}",
                where=where,
                hint="give the path of an image file, relative to the corpus file",
            )
        yield place


def _picture(path: Path, where: str) -> Picture:
    """An image that can be opened. Raises CorpusError naming row and file."""
    from PIL import Image, UnidentifiedImageError

    try:
        check_regular(path)
        with Image.open(path) as image:
            if image.width * image.height > PIXELS:
                raise ValueError(f"{image.width:,} by {image.height:,} pixels, and at most {PIXELS:,} are read")
            image.load()
        return Picture(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    except FileNotFoundError as error:
        raise CorpusError(
            f"no such image: {path}", where=where, hint="paths are relative to the corpus file"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({str(error).partition(chr(10))[0]})"
        raise CorpusError(
            f"image cannot be read: {path}{reason}", where=where, hint="give a whole image file that Pillow reads"
        ) from error
