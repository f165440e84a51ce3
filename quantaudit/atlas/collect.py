"""What an atlas is of: every card below a folder, and the published checkpoints where they are asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantaudit.card.published.records import published
from quantaudit.card.published.reference import read_reference
from quantaudit.card.schema import load_card
from quantaudit.card.seal import check_sealed
from quantaudit.compare.subjects.of_card import card_subject
from quantaudit.compare.subjects.of_published import published_subject
from quantaudit.compare.subjects.read import MOST, labeled, refuse_unsealed
from quantaudit.compare.subjects.subject import Subject
from quantaudit.errors import UsageError

CARD, STORED = "card.json", "*_top5_stats.json*"
SLUG = 40
"""Characters of a name in the name of its page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model of an atlas. path: its card; None for what is published, of which there is no page."""

    subject: Subject
    path: Path | None

    @property
    def page(self) -> str | None:
        """Address of its page, below the site."""
        return None if self.path is None else f"cards/{slug(self.subject.name, self.subject.where)}.html"


def slug(name: str, *parts: str) -> str:
    """A file name of plain letters, one for each name and parts."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.casefold().encode("ascii", "ignore").decode()).strip("-")[:SLUG].strip("-")
    digest = hashlib.sha256("\0".join((name, *parts)).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest


def collect(folder: Path, *, with_published: bool = False, require_sealed: bool = False) -> list[Entry]:
    """Everything below a folder, in the order of paths; a card that lies there twice counts once.

    Raises UsageError where there is no such folder, nothing in it, or too much, FormatError for what cannot be read.
    """
    if not folder.is_dir():
        raise UsageError("no such folder", where=str(folder), hint="give a folder that holds cards, at any depth")
    entries = list(_once(_read(folder, require_sealed)))
    if with_published:
        entries += [
            Entry(subject=published_subject(row, f"published:{row.model}"), path=None) for row in published().models
        ]
    if not 0 < len(entries) <= MOST:
        raise UsageError(
            f"{len(entries):,} cards, where 1 to {MOST:,} are shown",
            where=str(folder),
            hint="put card.json files of `quantaudit report` there, each in a folder of its own",
        )
    subjects = labeled([entry.subject for entry in entries])
    return [Entry(subject=subject, path=entry.path) for subject, entry in zip(subjects, entries, strict=True)]


def _read(folder: Path, require_sealed: bool) -> Iterator[tuple[str | None, Entry]]:
    """Each with what tells it from others: the seal of a card that holds."""
    for path in sorted(folder.rglob(CARD)):
        card = load_card(path)
        if require_sealed:
            check_sealed(card, path)
        subject = card_subject(card, path.relative_to(folder).as_posix())
        yield card.seal if subject.seal == "sealed" else None, Entry(subject=subject, path=path)
    for path in sorted(folder.rglob(STORED)):
        if require_sealed:
            refuse_unsealed(path)
        where = path.relative_to(folder).as_posix()
        yield None, Entry(subject=published_subject(read_reference(path), where), path=None)


def _once(entries: Iterator[tuple[str | None, Entry]]) -> Iterator[Entry]:
    seen: set[str] = set()
    for key, entry in entries:
        if key is None or key not in seen:
            yield entry
        if key is not None:
            seen.add(key)


def families(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Family → its models by size and name, as people count them; families in the order of their names.

    A type such as `qwen3_5` and the paper's Qwen3.5 are one, under the paper's name.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.subject.parameters or 0, natural(entry.subject.label))):
        groups.setdefault(re.sub(r"[\W_]+", "", entry.subject.family.casefold()), []).append(entry)
    named = {_name(members): members for members in groups.values()}
    return dict(sorted(named.items(), key=lambda item: natural(item[0])))


def _name(members: Sequence[Entry]) -> str:
    return next((row.subject.family for row in members if row.subject.source == "published"), members[0].subject.family)


def natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which 5T comes before 10T."""
    return [(int(part[:18]), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", text)]
