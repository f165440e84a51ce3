"""Card → why one scale is too coarse: the error of the worst groups' inputs with scales of three granularities."""

from __future__ import annotations

from collections import Counter
from typing import Any

from quantaudit.card.schema import Card
from quantaudit.card.text import number, visible
from quantaudit.card.views import groups as rows
from quantaudit.simulate.records import Cause, GranularityRow

SHOWN = 10
"""Groups in the chart, most damaging first."""
SCALES = {"per_tensor": "one scale", "per_token": "one per token", "per_channel": "one per channel"}
"""Field of a GranularityRow → what a page calls it."""
_TOLD: dict[Cause, str] = {
    "massive token": "a massive token sets the one scale",
    "outlier channel": "an outlier channel sets the one scale",
    "either": "finer scales of either kind help",
    "neither": "finer scales would not help much",
}
_COUNTED: dict[Cause, str] = {
    "massive token": "a massive token in",
    "outlier channel": "an outlier channel in",
    "either": "a token or a channel in",
    "neither": "neither in",
}


def share(error: float | None) -> str:
    """A relative error as a percentage of three significant digits: these differ by orders of magnitude."""
    return f"{number(None if error is None else 100 * error)}%"


def worst(card: Card) -> list[GranularityRow]:
    """Comparisons of the most damaging groups, worst first; of those whose three errors are known."""
    found = {row.group: row for row in (card.simulation.granularity if card.simulation else [])}
    known = [found[line.group] for line in rows.group_lines(card) if line.damage and line.group in found]
    return [row for row in known if None not in (row.per_tensor, row.per_token, row.per_channel)][:SHOWN]


def labels(card: Card) -> dict[str, str]:
    """Group → what its line of the chart is called, each differently: short where that is enough; then the cause."""
    names = rows.projections(card)
    short = {
        row.group: f"L{row.layer} {visible(names.get(row.group, row.group), limit=24)}"
        if row.layer is not None
        else visible(row.group, limit=28)
        for row in worst(card)
    }
    count, causes = Counter(short.values()), rows.causes(card)
    return {
        group: "\n".join(
            [label if count[label] == 1 else visible(group), *([causes[group]] if group in causes else [])]
        )
        for group, label in short.items()
    }


def points(card: Card) -> list[dict[str, Any]]:
    """One row for each group and granularity with an error; a logarithmic axis holds no zero."""
    called, causes = labels(card), rows.causes(card)
    return [
        {
            "line": called[row.group],
            "group": visible(row.group),
            "cause": causes.get(row.group, "neither"),
            "scales": name,
            "error": getattr(row, field),
            "error_text": share(getattr(row, field)),
        }
        for row in worst(card)
        for field, name in SCALES.items()
        if getattr(row, field) > 0
    ]


def reading(card: Card) -> str:
    """What the worst group loses with each kind of scale, and how often which cause is found; empty without any."""
    found = worst(card)
    if not found:
        return ""
    first, causes = found[0], Counter(row.cause for row in found)
    counted = [f"{words} {count}" for cause, words in _COUNTED.items() if (count := causes[cause])]
    return (
        f"In INT8 one scale loses {share(first.per_tensor)} of the energy of {visible(first.group)}’s input, a scale "
        f"for each token {share(first.per_token)} and one for each channel {share(first.per_channel)}: "
        f"{_TOLD[first.cause]}. Among the {len(found)} most damaging groups the cause is {_listed(counted)}."
    )


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
