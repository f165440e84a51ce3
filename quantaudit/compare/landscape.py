"""What many subjects show together: the statements of arXiv 2605.15572, from whatever is compared."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from quantaudit.card.published.records import published
from quantaudit.compare.changes import ratio
from quantaudit.compare.report import LandscapeFacts, MixturePair, ResidualShare, Shapes, Span, Trajectory, Variation
from quantaudit.compare.subjects.subject import RESIDUAL, Subject
from quantaudit.compare.subjects.texts import by_text, labels_of_texts
from quantaudit.stats.maxima.shape import JUMP

MATCHED = 1.5
"""Parameters of a dense model over a mixture's, or the reverse, up to which they are of one scale."""


def facts(subjects: Sequence[Subject]) -> LandscapeFacts:
    """All statements for which there are enough subjects whose numbers may be believed; ratios where these rest on one
    text.
    """
    believed = [subject for subject in subjects if not subject.marks]
    texts = by_text(believed)
    several = len(believed) > 1
    return LandscapeFacts(
        left_out=len(subjects) - len(believed),
        residual=residual_share(believed) if several else None,
        span=span(texts[0], labels_of_texts(texts)[0] if len(texts) > 1 else None) if several else None,
        shapes=shapes(believed) if several else None,
        mixtures=[pair for of_text in texts for pair in mixture_pairs(of_text)],
        trajectory=trajectory(believed) if len(texts) == 1 else None,
        variation=[row for name in _whole(subjects) for row in variations(name)],
    )


def maximum(subject: Subject) -> float | None:
    """The paper's M; None where nothing finite was measured."""
    return subject.largest.amax if subject.largest is not None else None


def residual_share(subjects: Sequence[Subject]) -> ResidualShare:
    """In how many subjects the maximum lies in the residual stream, the first tensor to reach it counting."""
    known = [subject for subject in subjects if subject.largest is not None]
    elsewhere = [subject for subject in known if subject.largest is not None and subject.largest.kind != RESIDUAL]
    return ResidualShare(
        residual=len(known) - len(elsewhere),
        of=len(known),
        elsewhere=[subject.label for subject in elsewhere],
        ties=[subject.label for subject in elsewhere if RESIDUAL in subject.ties],
    )


def span(subjects: Sequence[Subject], text: str | None = None) -> Span | None:
    """From the smallest to the largest maximum; None without two that differ. text: on which they rest, where others
    rest on another one.
    """
    known = [(value, subject) for subject in subjects if (value := maximum(subject))]
    if len({value for value, _ in known}) < 2:
        return None
    (low, smallest), (high, largest) = (choose(known, key=lambda item: item[0]) for choose in (min, max))
    return Span(
        smallest=smallest.label,
        largest=largest.label,
        ratio=high / low,
        decades=math.log10(high / low),
        of=len(known),
        text=text,
    )


def shapes(subjects: Sequence[Subject]) -> Shapes | None:
    """How many have highest elements of one sign, and in which they emerge at one layer; None without two."""
    known = [(subject.label, subject.shape) for subject in subjects if subject.shape is not None]
    if len(known) < 2:
        return None
    return Shapes(
        of=len(known),
        one_sign=sum(shape.sign != "mixed" for _, shape in known),
        sudden=[label for label, shape in known if shape.step is not None and shape.step.ratio > JUMP],
    )


def mixture_pairs(subjects: Sequence[Subject]) -> list[MixturePair]:
    """Every mixture with the dense subject of its lineage that is nearest in parameters, where one is of its scale."""
    pairs = []
    for mixture in subjects:
        dense = _dense_sibling(mixture, subjects)
        factor = ratio(maximum(dense), maximum(mixture)) if dense is not None else None
        if dense is not None and factor is not None:
            pairs.append(MixturePair(mixture=mixture.label, dense=dense.label, ratio=factor))
    return pairs


def _dense_sibling(mixture: Subject, subjects: Sequence[Subject]) -> Subject | None:
    if not mixture.mixture or not mixture.parameters:
        return None
    distances = [
        (abs(math.log(subject.parameters / mixture.parameters)), index)
        for index, subject in enumerate(subjects)
        if not subject.mixture and subject.parameters and subject.lineage == mixture.lineage
    ]
    distance, index = min(distances, default=(math.inf, 0))
    return subjects[index] if distance <= math.log(MATCHED) else None


def trajectory(subjects: Sequence[Subject]) -> Trajectory | None:
    """The maximum from subject to subject, where all are of one shape: stages of training, or releases."""
    shapes = {(subject.lineage, subject.layers, subject.hidden_size) for subject in subjects}
    if len(subjects) < 2 or len(shapes) > 1:
        return None
    maxima = [maximum(subject) for subject in subjects]
    return Trajectory(
        subjects=[subject.label for subject in subjects],
        maxima=maxima,
        ratios=[ratio(later, earlier) for earlier, later in itertools.pairwise(maxima)],
    )


def _whole(subjects: Sequence[Subject]) -> list[str]:
    """Published checkpoints that were measured over the whole corpus, each once."""
    full = {row.model: row.samples for row in published().models}
    names = (row.name for row in subjects if row.source == "published" and full.get(row.name) == row.conditions.samples)
    return list(dict.fromkeys(names))


def variations(model: str) -> list[Variation]:
    """How a published maximum varies between random parts of its corpus, by their size; empty where none were taken."""
    rows = [row for row in published().subsets if row.model == model]
    sizes = dict.fromkeys(row.samples for row in rows)
    return [variation(model, size, [abs(row.value) for row in rows if row.samples == size]) for size in sizes]


def variation(model: str, samples: int, maxima: Sequence[float]) -> Variation:
    """Of the maxima over parts of so many samples, two at least."""
    mean = statistics.fmean(maxima)
    return Variation(
        model=model,
        samples=samples,
        repeats=len(maxima),
        spread=(max(maxima) - min(maxima)) / mean,
        deviation=statistics.stdev(maxima) / mean,
    )
