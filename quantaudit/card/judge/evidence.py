"""What the rules of a card are given: a measurement, what was simulated on it, and the policy that judges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantaudit.card.schema import Card, Coverage, PeakSummary, SiteRow, StabilityInfo
from quantaudit.policy import Policy
from quantaudit.provenance import Provenance
from quantaudit.simulate.records import Simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class CardEvidence:
    """One measurement as rules see it. simulation, stability: None where there is none."""

    provenance: Provenance
    sites: Sequence[SiteRow]
    coverage: Coverage
    peak: PeakSummary
    policy: Policy
    simulation: Simulation | None = None
    stability: StabilityInfo | None = None


def evidence_of(card: Card, policy: Policy) -> CardEvidence:
    """What the rules of a card are given where nothing but the card is there, to judge its numbers by another policy.

    Its provenance has no samples, sites and texts of tokens: no rule reads them.
    """
    return CardEvidence(
        provenance=Provenance(
            quantaudit_version=card.quantaudit_version,
            model=card.model,
            corpus=card.corpus,
            environment=card.environment,
            samples=[],
            sites=[],
            unmeasured=card.coverage.unmeasured,
            token_text={},
        ),
        sites=card.sites,
        coverage=card.coverage,
        peak=card.peak,
        policy=policy,
        simulation=card.simulation,
        stability=card.stability,
    )
