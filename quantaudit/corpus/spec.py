"""What a corpus spec says: a file, a dataset folder or a Hub dataset, and which part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

SYNTAX = "ORG/NAME[@REVISION][:CONFIG[:SPLIT[:COLUMN]]]"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_PARTS = re.compile(r"(?P<place>.+?)(?::(?P<config>[^:/\\]*))?(?::(?P<split>[^:/\\]*))?(?::(?P<column>[^:/\\]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """`org/name@revision:config:split:column`. A part that is not given is None, and so is an empty one."""

    place: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    column: str | None = None

    @property
    def path(self) -> Path:
        """The place as a path on this machine."""
        return Path(self.place).expanduser()

    @property
    def hub(self) -> bool:
        """Whether the place can only be on the Hub: it has the form of an id, and nothing here has its name."""
        return _HUB_ID.fullmatch(self.place) is not None and not self.path.exists()

    def __str__(self) -> str:
        """As it would be written, without empty parts at the end."""
        place = f"{self.place}@{self.revision}" if self.revision else self.place
        return ":".join([place, self.config or "", self.split or "", self.column or ""]).rstrip(":")


def parse(text: str) -> Spec:
    """Read a spec. What exists on this machine under the whole text is that file or folder, colons and all."""
    if Path(text).expanduser().exists():
        return Spec(place=text)
    match = _PARTS.fullmatch(text)
    if match is None:
        return Spec(place=text)
    parts = {name: value or None for name, value in match.groupdict().items() if name != "place"}
    place, _, revision = match["place"].partition("@")
    if revision and _HUB_ID.fullmatch(place):
        return Spec(place=place, revision=revision, **parts)
    return Spec(place=match["place"], **parts)


def pinned(text: str, revision: str | None) -> str:
    """The spec with the revision that was read, so that the same rows are read again; unchanged where none is known."""
    spec = parse(text)
    return str(replace(spec, revision=revision)) if revision and spec.hub else text
