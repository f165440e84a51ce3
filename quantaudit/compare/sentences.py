"""What all subjects of a comparison show together, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantaudit.card.text import factor, number, percent, visible
from quantaudit.compare.report import LandscapeFacts, ResidualShare, Shapes, Span, Variation
from quantaudit.compare.view import NAME, TEXT

LISTED = 5
"""Names in a sentence."""


def sentences(facts: LandscapeFacts, *, several: bool) -> list[str]:
    """A sentence for each fact. several: whether they are of more than two subjects, which stand next to each other."""
    lines = []
    if facts.residual is not None and several:
        lines.append(_residual(facts.residual))
    if facts.span is not None and several:
        lines.append(_span(facts.span))
    if facts.shapes is not None and several:
        lines.append(_shapes(facts.shapes))
    lines += [
        f"{visible(pair.mixture, NAME)}, a mixture of experts, peaks {factor(pair.ratio)} lower than "
        f"{visible(pair.dense, NAME)}, the dense model of its scale."
        for pair in facts.mixtures
    ]
    if facts.trajectory is not None and several:
        steps = " → ".join(number(value) for value in facts.trajectory.maxima)
        ratios = ", ".join(factor(value) for value in facts.trajectory.ratios)
        lines.append(f"In this order the largest activation goes {steps} ({ratios}).")
    lines += _variations(facts.variation)
    if facts.left_out and several:
        lines.append(_left_out(facts.left_out))
    return lines


def _left_out(count: int) -> str:
    if count == 1:
        return "One that was edited, contradicts itself or is not to be trusted counts in none of these statements."
    return (
        f"{count} that were edited, contradict themselves or are not to be trusted count in none of these statements."
    )


def _shapes(row: Shapes) -> str:
    text = f"The five highest elements have one sign in {row.one_sign} of {row.of}"
    if not row.sudden:
        return f"{text}; the residual stream grows by degrees in all of them."
    return (
        f"{text}; in {len(row.sudden)} the residual stream grows more than tenfold from one layer to the next: "
        f"{_listed(row.sudden)}."
    )


def _span(row: Span) -> str:
    ends = f"{factor(row.ratio)} from {visible(row.smallest, NAME)} to {visible(row.largest, NAME)}"
    among = "" if row.text is None else f" of the {row.of} on one text, {visible(row.text, TEXT)},"
    if row.decades is None or row.decades < 1:
        return f"The largest activations{among} differ by {ends}."
    return f"The largest activation{among} spans {number(row.decades)} orders of magnitude, {ends}."


def _variations(rows: Sequence[Variation]) -> Iterator[str]:
    """A sentence for each size of the parts: the range over all models, then model by model."""
    for samples in dict.fromkeys(row.samples for row in rows):
        of_size = [row for row in rows if row.samples == samples]
        parts = f"{of_size[0].repeats} random parts of {samples:,} samples, as arXiv 2605.15572 publishes them"
        if len(of_size) == 1:
            (row,) = of_size
            yield (
                f"Over {parts}, the largest activation of {visible(row.model, NAME)} varies by {percent(row.spread)} "
                f"of its mean from lowest to highest (standard deviation {percent(row.deviation)})."
            )
            continue
        spreads = sorted(row.spread or 0.0 for row in of_size)
        each = ", ".join(
            f"{visible(row.model, NAME)} {percent(row.spread)} (standard deviation {percent(row.deviation)})"
            for row in of_size
        )
        yield (
            f"Over {parts}, the largest activation varies by {percent(spreads[0])} to {percent(spreads[-1])} of its "
            f"mean from lowest to highest: {each}."
        )


def _residual(row: ResidualShare) -> str:
    text = f"The largest activation lies in the residual stream in {row.residual} of {row.of}"
    if row.elsewhere:
        text += f", not in {_listed(row.elsewhere)}"
    if row.ties:
        text += f" (the residual stream of {_listed(row.ties)} reaches the same magnitude)"
    return f"{text}."


def _listed(names: Sequence[str]) -> str:
    shown = [visible(name, NAME) for name in names[:LISTED]]
    if len(names) > LISTED:
        shown.append(f"{len(names) - LISTED} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
