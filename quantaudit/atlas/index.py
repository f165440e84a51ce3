"""The first page of an atlas: what has to be known first, what all show together, and a sortable row for each model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from quantaudit._version import __version__
from quantaudit.card.schema.measured import FP16_MAX
from quantaudit.card.templates import html_environment, run, security_policy
from quantaudit.card.text import ABSENT, factor, number, size, visible
from quantaudit.compare.changes import ratio
from quantaudit.compare.landscape import facts
from quantaudit.compare.sentences import sentences
from quantaudit.compare.subjects.subject import LINEAR_INPUT, RESIDUAL, PeakPlace, Subject
from quantaudit.compare.subjects.texts import by_text, labels_of_texts
from quantaudit.compare.tables import label
from quantaudit.compare.view import NAME, TEXT
from quantaudit.provenance import Row

SCHEMES = 4
"""Schemes with a column of their own, those of most cards first."""
COLUMNS = (
    *("model", "family", "parameters", "largest", "lies in", "residual stream", "inputs of Linears", "FP16 headroom"),
)
"""Before the schemes; the text stands behind them."""


class Model(Row):
    """One row of atlas.json.

    page: of its card, below the site. family: by which it is grouped; family_page: where that has several members.
    """

    page: str | None
    family: str
    family_page: str | None
    subject: Subject


class Atlas(Row):
    """All models of a site."""

    schema_version: str = "1.0"
    quantaudit_version: str
    models: list[Model]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell. order: by which it sorts, None last; link: a page of the site; words: whether it is no number."""

    text: str
    order: float | str | None = None
    link: str | None = None
    words: bool = False


def index(models: Sequence[Model]) -> str:
    """The first page: what has to be known before numbers are compared, what all show, and a row for each model."""
    subjects = [model.subject for model in models]
    environment = html_environment(None)
    script = Markup(run(environment, "atlas.js.j2", {}))
    schemes, groups = _schemes(subjects), by_text(subjects)
    texts = labels_of_texts(groups)
    text_of_subject = {id(subject): text for group, text in zip(groups, texts, strict=True) for subject in group}
    context: dict[str, Any] = {
        "version": __version__,
        "script": script,
        "security_policy": security_policy([script]),
        "count": len(models),
        "texts": [visible(text, TEXT) for text in texts],
        "policies": _distinct(s.conditions.policy for s in subjects if s.conditions.policy is not None),
        "sentences": sentences(facts(subjects), several=len(subjects) > 2),
        "schemes": (len(schemes), len({score.scheme for subject in subjects for score in subject.schemes})),
        "columns": [*COLUMNS, *(visible(title, NAME) for title in schemes.values()), "text"],
        "rows": [
            _row(model, list(schemes), text_of_subject[id(model.subject)])
            for model in sorted(models, key=_by_magnitude)
        ],
        "families": sorted({(m.family, m.family_page) for m in models if m.family_page is not None}),
    }
    return run(environment, "atlas.html.j2", context)


def _by_magnitude(model: Model) -> tuple[float, str]:
    largest = model.subject.largest
    return -(largest.amax or 0.0) if largest else 0.0, model.subject.label


def _schemes(subjects: Sequence[Subject]) -> dict[str, str]:
    """Name → title of the schemes of most subjects."""
    scores = [score for subject in subjects for score in subject.schemes]
    titles = {score.scheme: score.title for score in scores}
    counts = {name: sum(score.scheme == name for score in scores) for name in titles}
    return {name: titles[name] for name in sorted(titles, key=lambda name: -counts[name])[:SCHEMES]}


def _row(model: Model, schemes: Sequence[str], text: str) -> list[Cell]:
    """text: the label of the text that it rests on."""
    subject = model.subject
    largest, residual, inputs = subject.largest, subject.peaks.get(RESIDUAL), subject.peaks.get(LINEAR_INPUT)
    headroom = ratio(FP16_MAX, residual.amax if residual else None)
    name = label(subject) + _marks(subject)
    family, text = visible(model.family, NAME), visible(text, TEXT)
    return [
        Cell(text=name, order=name.casefold(), link=model.page, words=True),
        Cell(text=family, order=family.casefold(), link=model.family_page, words=True),
        Cell(text=_size(subject.parameters), order=subject.parameters),
        _magnitude(largest.value if largest else None),
        Cell(
            text=largest.kind.replace("_", " ") if largest else ABSENT,
            order=largest.kind if largest else None,
            words=True,
        ),
        _magnitude(residual.value if residual else None),
        _magnitude(inputs.value if inputs else None),
        Cell(text=factor(headroom), order=headroom),
        *(_score(subject, scheme) for scheme in schemes),
        Cell(text=text, order=text.casefold(), words=True),
    ]


def _marks(subject: Subject) -> str:
    """In brackets why a card's numbers may not be believed; empty where nothing speaks against them."""
    return f" ({', '.join(subject.marks)})" if subject.marks else ""


def _magnitude(value: float | None) -> Cell:
    return Cell(text=number(value), order=None if value is None else abs(value))


def _score(subject: Subject, scheme: str) -> Cell:
    """Verdict and KL, in the order of the KL."""
    score = subject.scheme(scheme)
    if score is None:
        return Cell(text=ABSENT)
    kl = "" if score.kl is None else f", KL {number(score.kl, subject.kl_limits)}"
    return Cell(text=f"{score.status or 'not judged'}{kl}", order=score.kl, words=True)


def _kind(place: PeakPlace | None) -> Cell:
    if place is None:
        return Cell(text=ABSENT, words=True)
    kind = visible(place.kind.replace("_", " "), NAME)
    return Cell(text=kind, order=kind, words=True)


def _size(parameters: int | None) -> str:
    return ABSENT if parameters is None else size(parameters)


def _distinct(texts: Iterable[str]) -> list[str]:
    return [visible(text, NAME) for text in dict.fromkeys(texts)]
