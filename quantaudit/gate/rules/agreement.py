"""QA517: whether the scores that a gate would use agree with themselves and with the card's verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from quantaudit.card.judge.agreement import self_contradictions
from quantaudit.common.findings import Hit, rule
from quantaudit.simulate.records import Simulation

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence

CLOCKS = timedelta(days=1)
"""By which clocks may differ; time zones, where a date names none, differ by less."""


@rule(
    "QA517",
    "The card contradicts itself",
    severity="inconclusive",
    why="Scores of one run agree: the whole is the mean of its domains, no standard error is smaller than the domains "
    "lie apart, and verdicts repeat what was simulated. Where they do not, one of them was changed.",
    remedy="Make the card, or the simulation, again, and do not edit it.",
)
def contradictory(evidence: Evidence) -> Iterator[Hit]:
    """The scores of the row that the gate uses, those that its estimate rests on, the verdicts of the card, and what
    else of it cannot be of one run.
    """
    card = evidence.card
    unmeasured = {row.module for row in card.coverage.unmeasured}
    simulations = [card.simulation, *([] if evidence.simulation is card.simulation else [evidence.simulation])]
    problems = [
        *self_contradictions(card, evidence.measured),
        *_date_problems(card.created),
        *(text for one in simulations if one is not None for text in _count_problems(one, unmeasured)),
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        yield Hit(message=f"{'; '.join(problems[:3])}{more}", value=float(len(problems)))


def _date_problems(created: str) -> Iterator[str]:
    """A date that is none, or lies in the future."""
    try:
        date = datetime.fromisoformat(created)
    except ValueError:
        yield f"{created[:40]!r}, when it was made, is no date"
        return
    now = datetime.now(UTC)
    if (date if date.tzinfo else date.replace(tzinfo=UTC)) - now > CLOCKS:
        yield f"it was made on {date:%Y-%m-%d}, which is to come by this machine's clock ({now:%Y-%m-%d})"


def _count_problems(simulation: Simulation, unmeasured: AbstractSet[str]) -> Iterator[str]:
    """Recipes of more fused groups than there are, and those of one scheme throughout that have not all of its groups.

    Groups of which nothing was measured, because nothing calls them, may be passed by.
    """
    groups = {row.group for row in simulation.groups}
    schemes = {scheme.name for scheme in simulation.schemes}
    for recipe in simulation.recipes:
        inside = [row for row in simulation.groups if row.scheme == recipe.name and row.layer is not None]
        least = sum(not unmeasured >= set(row.members) for row in inside)
        uniform = recipe.digest is None and recipe.name in schemes
        if uniform and inside and not least <= recipe.groups <= len(inside):
            yield (
                f"{recipe.name} quantizes {recipe.groups:,} fused groups, and its scheme has {len(inside):,} in the "
                "decoder blocks"
            )
        elif groups and recipe.groups > len(groups) + len(unmeasured):
            yield f"{recipe.name} quantizes {recipe.groups:,} fused groups, of {len(groups):,}"
