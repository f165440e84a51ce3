"""What was measured, and on what, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal

from quantaudit.measure.profile.arrays import arrays_of
from quantaudit.measure.profile.digest import content_digest
from quantaudit.provenance import SPLITS, Provenance, SampleInfo, SiteInfo, Split, Unmeasured
from quantaudit.stats import site as statistics
from quantaudit.stats.site import SiteStatistics

EXPERT_TOKENS = 16
"""Routed tokens that an expert must see to count as measured."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Statistics by (site name, split) with their provenance; a site that never fired has none."""

    provenance: Provenance
    statistics: Mapping[tuple[str, Split], SiteStatistics]

    def __repr__(self) -> str:
        """One line: its arrays hold millions of numbers."""
        model, corpus = self.provenance.model, self.provenance.corpus
        return (
            f"Profile({model.name[:70]!r}, {len(self.sites):,} sites, {corpus.tokens:,} tokens of {corpus.samples:,} "
            f"samples, {len(self.provenance.unmeasured):,} modules not measured)"
        )

    @property
    def sites(self) -> list[SiteInfo]:
        """All sites, in the order of the forward pass."""
        return self.provenance.sites

    @cached_property
    def by_name(self) -> Mapping[str, SiteInfo]:
        """Site name → site."""
        return {site.name: site for site in self.sites}

    @property
    def experts(self) -> Literal["routed", "all"] | None:
        """Which tokens the experts were run on; None for a model without experts."""
        merged = any(site.kind == "expert_input_all" and site.parts for site in self.sites)
        return "all" if merged else "routed" if any(site.kind == "expert_input" for site in self.sites) else None

    @property
    def samples(self) -> list[SampleInfo]:
        """All samples; statistics name them by their index here."""
        return self.provenance.samples

    def split(self, site: str, split: Split) -> SiteStatistics | None:
        """One site's statistics in one split; None where it saw nothing."""
        return self.statistics.get((site, split))

    def calibration(self, site: str) -> SiteStatistics | None:
        """What a static scale is taken from: the calibration split, of an expert's input over all tokens where known.

        llm-compressor's `oneshot` calibrates experts on all tokens, routed to them or not. None without any token.
        """
        return self.split(self.by_name[site].all_tokens or site, "calibration")

    def whole(self, site: str) -> SiteStatistics | None:
        """One site's statistics over both splits, merged once and kept; None where it saw nothing."""
        if site not in self._wholes:
            parts = [part for name in SPLITS if (part := self.split(site, name)) is not None]
            self._wholes[site] = reduce(statistics.merge, parts) if parts else None
        return self._wholes[site]

    @cached_property
    def _wholes(self) -> dict[str, SiteStatistics | None]:
        return {}

    def input_site(self, member: str) -> SiteInfo | None:
        """The tensor that one Linear reads: of an expert's Linear its own, not its layer's. None where none is tapped.

        member: full module path.
        """
        return self._input_sites.get(member)

    @cached_property
    def _input_sites(self) -> Mapping[str, SiteInfo]:
        by_kind = {"linear_input": 0, "expert_input": 1}
        sites = sorted((site for site in self.sites if site.kind in by_kind), key=lambda site: by_kind[site.kind])
        return {member: site for site in sites for member in site.members}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was measured; equal for equal measurements, and for a profile and its redacted copy."""
        rows = ((f"{site}/{split}/{value.distribution.encoding}", value) for (site, split), value in self._sorted())
        return content_digest(self.provenance, ((key, arrays_of(value)) for key, value in rows))

    def _sorted(self) -> list[tuple[tuple[str, Split], SiteStatistics]]:
        return sorted(self.statistics.items())

    @classmethod
    def assemble(cls, provenance: Provenance, statistics: Mapping[tuple[str, Split], SiteStatistics]) -> Profile:
        """A profile whose undersampled experts are listed as unmeasured, next to what never ran.

        provenance: its `unmeasured` lists everything but undersampled experts.
        """
        profile = cls(provenance=provenance, statistics=statistics)
        unmeasured = merge_unmeasured(provenance.unmeasured, undersampled_experts(profile))
        return cls(provenance=provenance.model_copy(update={"unmeasured": unmeasured}), statistics=statistics)


def undersampled_experts(profile: Profile) -> list[Unmeasured]:
    """Linears of experts that saw fewer than EXPERT_TOKENS tokens: too few to know their range.

    Tokens routed to an expert count; all tokens do where all inputs of the expert are known over all of them.
    """
    rows = []
    for site in undersampled_inputs(profile):
        reason = f"expert saw {tokens(profile, site.name)} tokens, fewer than {EXPERT_TOKENS}"
        rows += [
            Unmeasured(module=member, reason=reason, weights=True, cause="undersampled") for member in site.members
        ]
    return rows


def undersampled_inputs(profile: Profile) -> list[SiteInfo]:
    """Inputs of experts that saw too few tokens."""
    inputs = [site for site in profile.sites if site.kind == "expert_input"]
    only_routed = {site.parent for site in inputs if site.all_tokens is None}

    def counted_site(site: SiteInfo) -> str:
        return site.name if site.parent in only_routed else site.all_tokens or site.name

    return [site for site in inputs if tokens(profile, counted_site(site)) < EXPERT_TOKENS]


def merge_unmeasured(never_fired: Sequence[Unmeasured], undersampled: Sequence[Unmeasured]) -> list[Unmeasured]:
    """All that was not measured, each module for one reason: what never ran is not called undersampled too."""
    listed = {row.module for row in never_fired}
    return [*never_fired, *(row for row in undersampled if row.module not in listed)]


def tokens(profile: Profile, site: str) -> int:
    """Tokens of a site in both splits."""
    return sum(part.tokens for split in SPLITS if (part := profile.split(site, split)) is not None)
