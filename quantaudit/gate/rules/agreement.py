"""QA517: whether the scores that a gate would use agree with themselves and with the card's verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantaudit.card.judge.agreement import self_contradictions
from quantaudit.common.findings import Hit, rule

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence


@rule(
    "QA517",
    "The card contradicts itself",
    severity="inconclusive",
    why="Scores of one run agree: the whole is the mean of its domains, no standard error is smaller than the domains "
    "lie apart, and verdicts repeat what was simulated. Where they do not, one of them was changed.",
    remedy="Make the card, or the simulation, again, and do not edit it.",
)
def contradictory(evidence: Evidence) -> Iterator[Hit]:
    """The scores of the row that the gate uses, those that its estimate rests on, and the verdicts of the card."""
    problems = self_contradictions(evidence.card, evidence.measured)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        yield Hit(message=f"{'; '.join(problems[:3])}{more}", value=float(len(problems)))
