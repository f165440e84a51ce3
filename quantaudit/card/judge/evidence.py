"""What the rules of a card are given: a measurement, what was simulated on it, and the policy that judges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantaudit.card.schema import Coverage, PeakSummary, SiteRow, StabilityInfo
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
