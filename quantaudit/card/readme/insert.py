"""A card's section in the README.md of a model's repository: written with the files that it names, or compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal, NoReturn, TypeAlias

from quantaudit.card.readme.document import decode, find_section, lines_of, with_section
from quantaudit.card.readme.front_matter import Front, with_front_matter
from quantaudit.card.readme.section import CARD, FILES, FOLDER, PAGE, Section
from quantaudit.card.schema import Card, load_card
from quantaudit.card.seal import seal_state
from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.file_set import file_set, finish
from quantaudit.common.outputs.locks import PREFIX
from quantaudit.common.reading.json_document import parse_json
from quantaudit.common.reading.regular_files import CONFIG_BYTES, read_bytes
from quantaudit.errors import FormatError, QuantauditError, UsageError

MOST_BYTES = 8 << 20
"""Of a README; the Hub shows none that is larger than a few MiB."""
MOST_PAGE_BYTES = 16 << 20
"""Of a card's page; those of the largest models have some four MiB."""
CONFIG = "config.json"
State: TypeAlias = Literal["same", "other", "missing"]
"""How a file compares with what a card gives."""
_CONFIG_HINT = "mend it, or leave --front-matter out"
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


def check_places(readme: Path | None, push: str | None, *, check: bool) -> None:
    """Refuse what cannot be meant. Raises UsageError."""
    if readme is None and push is None:
        raise UsageError("neither a readme nor --push", where="README", hint="give a README.md, or --push ORG/MODEL")
    if check and (push is not None or readme is None):
        raise UsageError(
            "--check changes nothing, and --push would", where="--check --push", hint="leave out one of the two"
        )


def page_of(card: Card, source: Path) -> tuple[bytes | None, str | None]:
    """The card.html that lies next to a card.json and is of that card, or why it is left out; both None without one.

    Pages name the seal of their card.
    """
    path = source.parent / Path(PAGE).name
    try:
        data = read_bytes(path, MOST_PAGE_BYTES)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{path} is left out: {error}"
    named = f'"quantaudit-seal" content="{card.seal}"'.encode()
    if seal_state(card) != "sealed" or named not in data:
        return None, f"{path} is left out: it is not the page of this card; `quantaudit render` makes one"
    return data, None


def check_readme(readme: Path) -> None:
    """Raises FormatError for a README that is missing or unreadable, or whose markers form no section."""
    find_section(_read(readme), str(readme))


def check_folder(readme: Path) -> None:
    """Raises UsageError where the folder next to a README holds anything, and no card that was inserted there."""
    folder = readme.parent / FOLDER
    if not folder.is_dir() or all(path.name.startswith(PREFIX) for path in folder.iterdir()):
        return
    try:
        load_card(folder / Path(CARD).name)
    except QuantauditError as error:
        raise UsageError(
            "holds files, and no card that was inserted there",
            where=str(folder),
            hint="move them elsewhere, or let --force replace those of the same names",
        ) from error


def check_section(section: Section, readme: Path, *, front_matter: bool = False) -> Insertion:
    """Compare a README and the files next to it with what a card gives. Raises FormatError for an unreadable one."""
    front = _front(section, readme) if front_matter else None
    found = differences(section, _read(readme), str(readme), _state(section, readme.parent), front)
    return Insertion(differences=found, written=[])


def write_section(section: Section, readme: Path, *, kept: Path | None, front_matter: bool = False) -> Insertion:
    """Write the section and its files, which change as one; nothing where they are so already.

    kept: the card.json that was read, which stays as it is where it is one of the files. front_matter: add to that too.
    Raises FormatError for a README that is unreadable, whose markers form no section, or whose front matter cannot be
    extended, and OutputError for a place that cannot be written.
    """
    text, where, folder = _read(readme), str(readme), readme.parent
    front = _front(section, readme) if front_matter else None
    new = {readme.name: new_text(section, text, where, front).encode("utf-8")} | dict(section.files)
    changed = {name: data for name, data in new.items() if not _holds(folder / name, data)}
    changed = {name: data for name, data in changed.items() if not _is_same(folder / name, kept)}
    stale = [name for name in FILES if name not in new and (folder / name).exists()]
    found = differences(section, text, where, _state(section, folder), front)
    if changed or stale:
        with file_set(folder, option="README") as files:
            for name, data in changed.items():
                files.write(name, data)
            for name in stale:
                files.remove(name)
    return Insertion(differences=found, written=[folder / name for name in [*changed, *stale]])


def new_text(section: Section, text: str, where: str, front: Front | None) -> str:
    """A README with the section, and with more in its front matter where that is given. Raises FormatError."""
    if front is not None:
        text = with_front_matter(text, front, where)
    return with_section(text, section.lines, where)


def differences(
    section: Section, text: str, where: str, state: Callable[[str], State], front: Front | None
) -> list[str]:
    """In what a README and its files are not what a card gives, in words. state: of each file. Raises FormatError."""
    found = []
    span, readme = find_section(text, where), PurePath(where).name
    if front is not None and with_front_matter(text, front, where) != text:
        found.append(f"the front matter of {readme} lacks what the card gives")
    if span is None:
        found.append(f"{readme} has no section")
    elif with_section(text, section.lines, where) != text:
        found.append(f"{readme} differs from the card {_where(section, text, span.start, span.end)}")
    for name in FILES:
        there = state(name)
        if name not in section.files:
            found += [f"{name} is there, and the card gives none"] if there != "missing" else []
        elif there != "same":
            found.append(f"{name} {'is not what the card gives' if there == 'other' else 'is missing'}")
    return found


def _front(section: Section, readme: Path) -> Front:
    """What the card, and the configuration next to the README, say for the front matter."""
    path = readme.parent / CONFIG
    try:
        data = read_bytes(path, CONFIG_BYTES)
    except FileNotFoundError:
        data = b"{}"
    except OSError as error:
        raise FormatError(f"cannot be read: {error}", where=str(path), hint=_CONFIG_HINT) from error
    return front_of(section, data, str(path))


def front_of(section: Section, config: bytes, where: str) -> Front:
    """What the card, and the bytes of a config.json, say for the front matter. Raises FormatError."""
    from quantaudit.model.loading.checkpoint import quantization_method

    try:
        settings = parse_json(config.decode("utf-8"))
    except ValueError as error:  # of it UnicodeDecodeError
        raise FormatError(f"not JSON: {error}", where=where, hint=_CONFIG_HINT) from error
    quantized = isinstance(settings, dict) and quantization_method(settings) is not None
    return Front(base=section.base, quantized=quantized)


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


def _state(section: Section, folder: Path) -> Callable[[str], State]:
    """How the files in a folder compare with those that the card gives."""

    def state(name: str) -> State:
        if not (folder / name).exists():
            return "missing"
        data = section.files.get(name)
        return "same" if data is not None and _holds(folder / name, data) else "other"

    return state


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
