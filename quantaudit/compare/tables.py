"""A comparison as tables of plain text, which the terminal, the page and Markdown show alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from quantaudit.card.text import ABSENT, factor, number, percent, size, token, visible
from quantaudit.compare.changes import ratio, steps_worse
from quantaudit.compare.report import (
    Change,
    Comparison,
    GroupChange,
    PeakChange,
    SchemeChange,
    ValueChange,
)
from quantaudit.compare.subjects.subject import LINEAR_INPUT, RESIDUAL, PeakPlace, SchemeScore, Subject
from quantaudit.compare.subjects.texts import comparable
from quantaudit.compare.view import NAME, TableView
from quantaudit.stats.maxima.shape import MaximumShape


def tables(comparison: Comparison) -> list[TableView]:
    """Two subjects next to each other; more of them one below the other."""
    if len(comparison.subjects) == 2:
        return [view for view in _pair(comparison) if view.rows]
    return [view for view in _many(comparison) if view.rows]


def label(subject: Subject) -> str:
    """A subject's name, inert and cut."""
    return visible(subject.label, NAME)


def _pair(comparison: Comparison) -> Iterator[TableView]:
    baseline, other = comparison.subjects
    change = comparison.changes[0]
    names = (label(baseline), label(other))
    level = percent(comparison.level).replace(".0%", "%")
    yield TableView(
        title="Verdicts and scores",
        caption=f"KL in nats per token. In brackets {level} intervals: of a change over the domains of samples that "
        "both sides rest on, otherwise as of independent ones.",
        columns=("scheme", *names, "change"),
        rows=[row for scheme in change.schemes for row in _scheme_rows(scheme, baseline, other)],
    )
    yield TableView(
        title="Peaks",
        caption="The largest magnitude of each kind of tensor, with its sign.",
        columns=("tensors", *names, "ratio"),
        rows=[_peak_row(row) for row in change.peaks],
    )
    yield TableView(
        title="Where they sit",
        caption="The tensor of each of these peaks, with the position of its token in its sample, and its channel.",
        columns=("tensors", *names),
        rows=[_where_row(row) for row in change.peaks],
        text_columns=frozenset({0, 1, 2}),
    )
    yield TableView(
        title="Where peaks live",
        caption="Massive activations are elements above 100 and above 1,000 medians of their token. The highest peaks "
        "are a hundred elements at most.",
        columns=("of", *names),
        rows=list(_living(change, baseline, other)),
    )
    yield TableView(
        title="Worst groups",
        caption="Fused groups among the worst of either side, by their share of the price, or of the damage where "
        "there are no prices. A dash: not among the worst five, or not there.",
        columns=("group", "scheme", *names),
        rows=[_group_row(row, change.schemes) for row in change.groups],
        text_columns=frozenset({0, 1}),
    )


def _scheme_rows(row: SchemeChange, baseline: Subject, other: Subject) -> Iterator[list[str]]:
    """Of a scheme that both were simulated under; what one side lacks is named among the caveats."""
    title = visible(row.title, NAME)
    ours, theirs = baseline.scheme(row.scheme), other.scheme(row.scheme)
    if ours is None or theirs is None:
        return
    statuses = [_status(ours), _status(theirs)]
    yield [f"{title}: verdict", *statuses, _verdict_change(row)]
    yield [f"{title}: KL", _kl(ours, baseline), _kl(theirs, other), _change(row.kl)]
    shares = [percent(row.top1.baseline, baseline.top1_limits), percent(row.top1.other, other.top1_limits)]
    yield [f"{title}: top-1 unchanged", *shares, _change(row.top1, share=True)]


def _verdict_change(row: SchemeChange) -> str:
    steps = steps_worse(row.baseline_status, row.other_status)
    if steps is None:
        return ABSENT if row.baseline_status != row.other_status or row.baseline_status is None else "same"
    return "worse" if steps > 0 else "better" if steps < 0 else "same"


def _status(score: SchemeScore) -> str:
    return score.status or "not judged"


def _kl(score: SchemeScore, subject: Subject) -> str:
    if score.kl is None:
        return ABSENT
    shown = [number(value, subject.kl_limits) for value in (score.kl, score.kl_low, score.kl_high)]
    return shown[0] if ABSENT in shown else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _change(value: ValueChange, *, share: bool = False) -> str:
    show = percent if share else number
    if value.change is None:
        return ABSENT
    text = f"{'+' if value.change > 0 else ''}{show(value.change)}"
    if value.low is None or value.low == value.high:
        return text
    return f"{text} ({show(value.low)} to {show(value.high)})"


def _peak_row(row: PeakChange) -> list[str]:
    values = [ABSENT if side is None else number(side.value) for side in (row.baseline, row.other)]
    return [_words(row.kind), *values, factor(row.ratio)]


def _where_row(row: PeakChange) -> list[str]:
    return [_words(row.kind), *(ABSENT if side is None else where(side) for side in (row.baseline, row.other))]


def _words(kind: str) -> str:
    names = {RESIDUAL: "residual stream", LINEAR_INPUT: "inputs of Linears"}
    return names.get(kind) or visible(kind.replace("_", " "), NAME)


def where(place: PeakPlace) -> str:
    """Site, token position, token and channel of a peak, as far as they are known."""
    parts = [visible(place.site, NAME)]
    if place.position is not None:
        parts.append(f"position {place.position:,}")
    if place.token is not None:
        parts.append(f"token {token(place.token)}")
    if place.channel is not None:
        parts.append(f"channel {place.channel:,}")
    return ", ".join(parts)


def _living(change: Change, baseline: Subject, other: Subject) -> Iterator[list[str]]:
    for kind, name in ((RESIDUAL, "residual stream"), (LINEAR_INPUT, "inputs of Linears")):
        places = baseline.peaks.get(kind), other.peaks.get(kind)
        for title, values in (
            ("massive activations", [place.massive if place else None for place in places]),
            ("channels of the highest peaks", [place.channels if place else None for place in places]),
        ):
            if any(value is not None for value in values):
                yield [f"{name}: {title}", *(ABSENT if value is None else f"{value:,}" for value in values)]
        shares = [place.first_position if place else None for place in places]
        if any(share is not None for share in shares):
            yield [f"{name}: highest peaks at first positions", *map(percent, shares)]
    cells = [shape_cells(subject.shape) for subject in (baseline, other)]
    titles = ("sign of the five highest", "highest over their mean", "tensors near it", "largest step between layers")
    yield from ([f"largest activation: {title}", *row] for title, *row in zip(titles, *cells, strict=True))
    channels = [subject.persistent_channels for subject in (baseline, other)]
    if any(channels):
        yield ["residual stream: channels that stand out in most layers", *map(_channels, channels)]
    if change.channels is not None and (change.channels.gone or change.channels.new):
        gone, new = (", ".join(map(str, row)) or "none" for row in (change.channels.gone, change.channels.new))
        yield ["residual stream: only here", gone, new]


def _channels(channels: Sequence[int] | None) -> str:
    return ABSENT if channels is None else ", ".join(map(str, channels)) or "none"


def _group_row(row: GroupChange, schemes: Sequence[SchemeChange]) -> list[str]:
    title = next((scheme.title for scheme in schemes if scheme.scheme == row.scheme), row.scheme)
    shares = [percent(row.baseline), percent(row.other)]
    return [visible(row.group, NAME), f"{visible(title, NAME)}, {row.shares_of}", *shares]


def _many(comparison: Comparison) -> Iterator[TableView]:
    subjects = comparison.subjects
    peaks = [subject.largest.amax if subject.largest else None for subject in subjects]
    yield TableView(
        title="Largest activations",
        caption="Bars on a logarithmic scale. The ratio is to the first, where both rest on one text and may be "
        "believed. The inputs of Linears are what a scale has to cover; they take no part in the largest activation, "
        "as in arXiv 2605.15572.",
        columns=("model", "parameters", "largest", "ratio", "where", "residual stream", "inputs of Linears"),
        rows=[_subject_row(subject, subjects[0]) for subject in subjects],
        text_columns=frozenset({0, 4}),
        bars=log_positions(peaks),
    )
    yield TableView(
        title="Shape of the largest activation",
        caption="Over the same tensors: the sign of the five highest elements, the highest over the mean of the five, "
        "tensors that reach nine tenths of it, and the largest growth of the residual stream from one layer to the "
        "next.",
        columns=("model", "five highest", "over their mean", "tensors near it", "largest step"),
        rows=[[label(subject), *shape_cells(subject.shape)] for subject in subjects],
        text_columns=frozenset({0, 1, 4}),
    )
    titles = {score.scheme: score.title for subject in subjects for score in subject.schemes}
    yield TableView(
        title="Verdicts and scores",
        caption="Verdict, KL in nats per token with its interval, and the change of the KL from the first.",
        columns=("model", "scheme", "verdict", "KL", "change", "top-1 unchanged"),
        rows=[
            row
            for name in titles
            for index, subject in enumerate(subjects)
            for row in _score_row(name, index, comparison)
        ],
        text_columns=frozenset({0, 1, 2}),
    )


def shape_cells(shape: MaximumShape | None) -> list[str]:
    """Sign of the five highest, concentration, tensors nearby, and the largest step."""
    if shape is None:
        return [ABSENT] * 4
    step = ABSENT if shape.step is None else f"{factor(shape.step.ratio)} at layer {shape.step.layer}"
    return [shape.sign, factor(shape.concentration), f"{len(shape.near):,}", step]


def _subject_row(subject: Subject, baseline: Subject) -> list[str]:
    largest, first = subject.largest, baseline.largest
    kinds = [subject.peaks.get(kind) for kind in (RESIDUAL, LINEAR_INPUT)]
    known = subject is baseline or comparable(baseline, subject)
    return [
        label(subject),
        ABSENT if subject.parameters is None else size(subject.parameters),
        ABSENT if largest is None else number(largest.value),
        factor(ratio(largest.amax if largest else None, first.amax if first else None)) if known else ABSENT,
        ABSENT if largest is None else where(largest),
        *(ABSENT if place is None else number(place.value) for place in kinds),
    ]


def _score_row(scheme: str, index: int, comparison: Comparison) -> Iterator[list[str]]:
    subject = comparison.subjects[index]
    score = subject.scheme(scheme)
    if score is None:
        return
    changes = [row for change in comparison.changes if change.subject == index for row in change.schemes]
    kl = next((row.kl for row in changes if row.scheme == scheme), None)
    yield [
        label(subject),
        visible(score.title, NAME),
        _status(score),
        _kl(score, subject),
        ABSENT if kl is None else _change(kl),
        percent(score.top1, subject.top1_limits),
    ]


def log_positions(magnitudes: Sequence[float | None]) -> list[float]:
    """Positions 0 … 1 of magnitudes on a logarithmic scale from the power of ten below the least; 0 for none."""
    known = [value for value in magnitudes if value]
    if not known:
        return [0.0] * len(magnitudes)
    low = math.floor(math.log10(min(known)))
    span = (math.log10(max(known)) - low) or 1.0
    return [(math.log10(value) - low) / span if value else 0.0 for value in magnitudes]
