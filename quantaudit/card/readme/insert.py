"""A card's section in the README.md of a model's repository: written with the files that it names, or compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from quantaudit.card.readme.document import decode, find_section, lines_of, with_section
from quantaudit.card.readme.section import FILES, FOLDER, Section
from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.file_set import file_set, finish
from quantaudit.common.reading.regular_files import read_bytes
from quantaudit.errors import FormatError

MOST_BYTES = 8 << 20
"""Of a README; the Hub shows none that is larger than a few MiB."""
_FEW = 5
"""Differences that are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """What came of a section. differences: in what the README and its files were not what the card gives, in words.

    written: the files that changed, removed ones included; empty where nothing had to, or nothing was to be written.
    pull_request: its address, where one was opened.
    """

    differences: list[str]
    written: list[Path]
    pull_request: str | None = None

    def __str__(self) -> str:
        """One line."""
        if not self.differences:
            return "the section is what the card gives"
        more = len(self.differences) - _FEW
        return "; ".join(self.differences[:_FEW]) + (f"; and {more} more" if more > 0 else "")


def places(readme: Path, card: Path | None) -> list[Output]:
    """What is written for a README: itself, and the folder next to it. card: the card.json that is read."""
    names = [Path(name) for name in FILES if not _is_same(readme.parent / name, card)]
    folder = readme.parent / FOLDER
    return [
        Output(option="README", path=readme),
        Output(option="README", path=folder, folder=True, writes=tuple(name.name for name in names)),
    ]


def check_readme(readme: Path) -> None:
    """Raises FormatError for a README that is missing or unreadable, or whose markers form no section."""
    find_section(_read(readme), str(readme))


def check_section(section: Section, readme: Path) -> Insertion:
    """Compare a README and the files next to it with what a card gives. Raises FormatError for an unreadable one."""
    return Insertion(differences=_differences(section, readme, _read(readme)), written=[])


def write_section(section: Section, readme: Path, *, kept: Path | None) -> Insertion:
    """Write the section and its files, which change as one; nothing where they are so already.

    kept: the card.json that was read, which stays as it is where it is one of the files. Raises FormatError for a
    README that is unreadable, or whose markers form no section, and OutputError for a place that cannot be written.
    """
    text = _read(readme)
    new = {readme.name: with_section(text, section.lines, str(readme)).encode("utf-8")} | dict(section.files)
    folder = readme.parent
    changed = {name: data for name, data in new.items() if not _holds(folder / name, data)}
    changed = {name: data for name, data in changed.items() if not _is_same(folder / name, kept)}
    stale = [name for name in FILES if name not in new and (folder / name).exists()]
    differences = _differences(section, readme, text)
    if changed or stale:
        with file_set(folder, option="README") as files:
            for name, data in changed.items():
                files.write(name, data)
            for name in stale:
                files.remove(name)
    return Insertion(differences=differences, written=[folder / name for name in [*changed, *stale]])


def _read(readme: Path) -> str:
    """The text of a README. Raises FormatError."""
    finish(readme.parent)
    try:
        return decode(read_bytes(readme, MOST_BYTES), str(readme))
    except FileNotFoundError:
        _refuse(readme, "no such file", "give the README.md of the model's repository; an empty file will do")
    except OSError as error:
        problem = error.strerror or type(error).__name__
        _refuse(readme, f"cannot be read: {problem[:1].lower()}{problem[1:]}", "give the README.md of a repository")


def _refuse(readme: Path, problem: str, hint: str) -> NoReturn:
    raise FormatError(problem, where=str(readme), hint=hint)


def _differences(section: Section, readme: Path, text: str) -> list[str]:
    found = []
    span = find_section(text, str(readme))
    if span is None:
        found.append(f"{readme.name} has no section")
    elif with_section(text, section.lines, str(readme)) != text:
        found.append(f"{readme.name} differs from the card {_where(section, text, span.start, span.end)}")
    for name in FILES:
        path, data = readme.parent / name, section.files.get(name)
        if data is None and path.exists():
            found.append(f"{name} is there, and the card gives none")
        elif data is not None and not _holds(path, data):
            found.append(f"{name} {'is not what the card gives' if path.exists() else 'is missing'}")
    return found


def _where(section: Section, text: str, start: int, end: int) -> str:
    """The first line of the section that is not the card's."""
    there = lines_of(text[start:end])
    first = len(lines_of(text[:start])) + 1
    pairs = zip(there, section.lines, strict=False)
    same = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if same is None:
        same = min(len(there), len(section.lines)) if len(there) != len(section.lines) else None
    return "in its line endings" if same is None else f"on line {first + same}"


def _holds(path: Path, data: bytes) -> bool:
    """Whether a regular file, and no link, has these bytes."""
    try:
        return not path.is_symlink() and read_bytes(path, len(data)) == data
    except OSError:
        return False


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and path.samefile(other)
