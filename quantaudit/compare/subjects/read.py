"""What is given to a comparison, as subjects: cards, their folders, stored statistics of the paper, published names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from quantaudit.card.published.records import PublishedModel, published
from quantaudit.card.published.reference import looks_like_reference, read_reference
from quantaudit.card.schema import Card, load_card
from quantaudit.card.seal import check_sealed
from quantaudit.compare.subjects.of_card import card_subject
from quantaudit.compare.subjects.of_published import published_subject
from quantaudit.compare.subjects.subject import Subject
from quantaudit.errors import FormatError, UsageError

PREFIX = "published"
"""`published`, `published:main`, `published:FAMILY` and `published:MODEL` name what the package ships."""
MOST = 1000
"""Subjects of one comparison."""


def read_subjects(given: Sequence[str | Path | Card], *, require_sealed: bool = False) -> list[Subject]:
    """All subjects in the order in which they were given, two at least, told apart by their labels.

    Raises FormatError for what is no card and no stored statistics, UsageError for an unknown name or too few.
    """
    subjects = [subject for one in given for subject in _subjects(one, require_sealed)]
    if not 2 <= len(subjects) <= MOST:
        raise UsageError(
            f"{len(subjects)} to compare, where 2 to {MOST:,} are needed",
            where="quantaudit compare",
            hint="give two cards or more, or `published:main` for the models of arXiv 2605.15572",
        )
    return labeled(subjects)


def labeled(subjects: Sequence[Subject]) -> list[Subject]:
    """The same, with labels that tell them apart."""
    labels = labels_of([(subject.name, subject.where) for subject in subjects])
    return [subject.model_copy(update={"label": label}) for subject, label in zip(subjects, labels, strict=True)]


def labels_of(named: Sequence[tuple[str, str]]) -> list[str]:
    """Names, with the place where several have one name, and a number where that is one place too.

    named: name and place of each.
    """
    names = Counter(name for name, _ in named)
    labels = [name if names[name] == 1 else f"{name} ({where})" for name, where in named]
    repeated = Counter(labels)
    return [label if repeated[label] == 1 else f"{label} #{index}" for index, label in enumerate(labels, start=1)]


def file_of(given: str | Path) -> Path:
    """The file that a path names: a folder's is its card."""
    path = Path(given)
    return path / "card.json" if path.is_dir() else path


def _subjects(given: str | Path | Card, require_sealed: bool) -> Iterator[Subject]:
    if isinstance(given, Card):
        if require_sealed:
            check_sealed(given, "card")
        yield card_subject(given, "in memory")
        return
    name = str(given)
    if (name == PREFIX or name.startswith(f"{PREFIX}:")) and not Path(name).exists():
        yield from (published_subject(row, f"{PREFIX}:{row.model}") for row in _named(name))
        return
    path = file_of(given)
    if path.is_file() and looks_like_reference(path):
        if require_sealed:
            refuse_unsealed(path)
        yield published_subject(read_reference(path), str(path))
        return
    _refuse_model(Path(given), path)
    card = load_card(path)
    if require_sealed:
        check_sealed(card, path)
    yield card_subject(card, str(path))


def _refuse_model(given: Path, card: Path) -> None:
    """Raises FormatError where what is given is a checkpoint."""
    folder = (given / "config.json").is_file() and not card.exists()
    if folder or given.suffix == ".gguf" or (str(given) == "demo" and not card.exists()):
        raise FormatError(
            "is a model, and no card", where=str(given), hint="add --logits to compare models, or give their card.json"
        )


def refuse_unsealed(path: Path) -> None:
    """Raises FormatError: stored statistics have no seal."""
    raise FormatError(
        "stored statistics have no seal, so that an edit would not show",
        where=str(path),
        hint="leave --require-sealed out, or name the model as `published:MODEL`",
    )


def _named(name: str) -> list[PublishedModel]:
    models, wanted = published().models, name.removeprefix(PREFIX).removeprefix(":").casefold()
    if not wanted:
        return models
    if wanted == "main":
        return [row for row in models if row.main]
    chosen = [row for row in models if wanted in (row.model.casefold(), (row.family or "").casefold())]
    if not chosen:
        families = ", ".join(dict.fromkeys(row.family or row.model for row in models))
        raise UsageError(
            "no such published model", where=name[:200], hint=f"one of main, {families}, or a model of `published`"
        )
    return chosen
