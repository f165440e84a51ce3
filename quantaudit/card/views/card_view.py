"""One card with its derived data, each part computed on first use and kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from quantaudit.card.schema import Card, Finding, PeakStability, SiteRow
from quantaudit.card.seal import seal_state
from quantaudit.card.views import coverage, experts, frontier, groups, landscape, peaks, provenance, schemes
from quantaudit.card.views.coverage import UnmeasuredLine
from quantaudit.card.views.experts import ExpertLine
from quantaudit.card.views.frontier import Frontier
from quantaudit.card.views.groups import GroupLine
from quantaudit.card.views.landscape import LandscapeLine
from quantaudit.card.views.peaks import PeakLine
from quantaudit.policy import PolicyName, identity_of
from quantaudit.simulate.records import GranularityRow, SchemeInfo, TensorErrorRow


@dataclass(frozen=True, eq=False)
class CardView:
    """A card as pages and charts read it. The card must not change while its view is in use."""

    card: Card

    @cached_property
    def edited(self) -> bool:
        """Whether the card was changed after it was sealed."""
        return seal_state(self.card) == "edited"

    @cached_property
    def policy(self) -> str:
        """The policy of the verdicts, and those that it builds on, each with the first digits of its digest."""
        verdict = self.card.verdict
        return identity_of(PolicyName(name=verdict.policy, digest=verdict.policy_digest or ""), *verdict.extends)

    @cached_property
    def static(self) -> SchemeInfo | None:
        """The first scheme whose activation scales are fixed beforehand; None where none was simulated."""
        return schemes.first_static(self.card)

    @cached_property
    def dynamic(self) -> SchemeInfo | None:
        """The first scheme that computes activation scales as it runs; None where none was simulated."""
        return schemes.first_dynamic(self.card)

    @cached_property
    def titles(self) -> dict[str, str]:
        """Scheme name → title; every simulated name has one."""
        return schemes.titles(self.card)

    @cached_property
    def by_token(self) -> dict[str, str]:
        """Recipe name → how its KL is spread over tokens, and what it means, in words; where it is known."""
        rows = self.card.simulation.recipes if self.card.simulation else []
        return {row.name: text for row in rows if (text := schemes.by_token(row)) is not None}

    @cached_property
    def projections(self) -> dict[str, str]:
        """Fused group → projection, of every simulated group."""
        return groups.projections(self.card)

    @cached_property
    def sites(self) -> dict[str, SiteRow]:
        """Site name → row."""
        return {site.name: site for site in self.card.sites}

    @cached_property
    def tensor_errors(self) -> dict[str, TensorErrorRow]:
        """Fused group → errors of its input under the static scheme, by its own observer where there are several."""
        return groups.tensor_errors(self.card, self.static)

    @cached_property
    def causes(self) -> dict[str, str]:
        """Fused group → why one scale is too coarse for its input, in words; none where finer scales hardly help."""
        return groups.causes(self.card)

    @cached_property
    def groups(self) -> list[GroupLine]:
        """Every fused group, those that hurt most under the static scheme first."""
        return groups.group_lines(
            groups.effects(self.card, self.static or self.dynamic),
            dynamic=groups.effects(self.card, self.dynamic),
            sites=self.sites,
            errors=self.tensor_errors,
            causes=self.causes,
        )

    @cached_property
    def groups_by_layer(self) -> list[GroupLine]:
        """The groups inside decoder blocks, in the order of the layers, then of the names."""
        inside = (line for line in self.groups if line.layer is not None)
        return sorted(inside, key=lambda line: (line.layer or 0, line.group))

    @cached_property
    def singles(self) -> list[GroupLine]:
        """The groups that were simulated alone, under the scheme of the others' damage, in the order of `groups`."""
        return [line for line in self.groups if line.kl is not None]

    @cached_property
    def sampled(self) -> int:
        """How many of these are the fair choice that correlations rest on."""
        return sum(line.sampled for line in self.singles)

    @cached_property
    def simulated_prices(self) -> int:
        """How many prices, over all schemes, are of a group simulated alone."""
        simulation = self.card.simulation
        return sum(row.price_simulated for row in simulation.groups) if simulation is not None else 0

    @cached_property
    def granularities(self) -> list[GranularityRow]:
        """Comparisons of the worst groups, worst first; of those whose three errors are known."""
        return groups.worst_granularities(self.card, self.groups)

    @cached_property
    def peaks_quantized(self) -> list[PeakLine]:
        """The largest element of each site that reaches a quantizer, largest magnitude first."""
        return peaks.peak_lines(self.card, quantized=True)

    @cached_property
    def peaks_other(self) -> list[PeakLine]:
        """The largest element of each site that does not reach a quantizer, largest magnitude first."""
        return peaks.peak_lines(self.card, quantized=False)

    @cached_property
    def shape(self) -> str | None:
        """What is nearly as high as the largest activation, in words; None where nothing but zeros was measured."""
        shape = peaks.shape_of(self.card)
        return None if shape is None else peaks.shape_sentence(shape)

    @cached_property
    def undrawn(self) -> list[str]:
        """Names of layer sites that a logarithmic chart leaves out: no finite peak, or a peak of zero."""
        return peaks.undrawn_sites(self.card)

    @cached_property
    def stable_peaks(self) -> list[tuple[str, PeakStability]]:
        """(label, stability) of the card's leading peaks; one where both are at the same site."""
        return peaks.stable_peaks(self.card)

    @cached_property
    def experts(self) -> list[ExpertLine]:
        """Every layer's experts, in the order of the layers."""
        return experts.expert_lines(self.card)

    @cached_property
    def experts_by_peak(self) -> list[ExpertLine]:
        """Every layer's experts, largest peak first."""
        return sorted(self.experts, key=lambda line: (-(line.amax or 0.0), line.layer))

    @cached_property
    def frontier(self) -> Frontier | None:
        """The best mixtures of schemes by size; None where groups have no prices, or weights no shapes."""
        return frontier.frontier_of(self.card)

    @cached_property
    def landscape(self) -> list[LandscapeLine]:
        """Published peaks and this model's own, largest magnitude first."""
        return landscape.landscape_lines(self.card)

    @cached_property
    def unmeasured(self) -> list[UnmeasuredLine]:
        """What was not measured; modules and reasons that are alike but for their numbers in one line."""
        return coverage.unmeasured_lines(self.card)

    @cached_property
    def provenance(self) -> list[tuple[str, str]]:
        """(label, value) of where the numbers come from."""
        return provenance.provenance_lines(self.card)

    @cached_property
    def serious(self) -> list[Finding]:
        """Errors, then warnings, each in the card's order."""
        return [row for severity in ("error", "warning") for row in self.card.findings if row.severity == severity]

    @cached_property
    def remarks(self) -> list[Finding]:
        """Findings that are for information only."""
        return [row for row in self.card.findings if row.severity == "info"]
