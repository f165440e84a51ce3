"""Profile + simulation + policy → Card. Whatever is shown is computed here, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from quantaudit._version import __version__
from quantaudit.card.judge.evidence import CardEvidence
from quantaudit.card.judge.findings import find
from quantaudit.card.judge.verdict import decide
from quantaudit.card.redact import redact, redact_simulation
from quantaudit.card.schema import (
    Card,
    Coverage,
    GlobalPeak,
    Landscape,
    MagnitudesRow,
    Peak,
    PeakSummary,
    SiteRow,
    check_simulation,
)
from quantaudit.card.schema.measured import FP16_MAX
from quantaudit.card.seal import seal
from quantaudit.card.sections import experts
from quantaudit.card.sections.landscape import compared_site, place
from quantaudit.card.sections.peak_locations import places_info, token_kind
from quantaudit.card.sections.stability import stability_info
from quantaudit.correlate import correlate, predictors
from quantaudit.measure.profile import Profile
from quantaudit.policy import Policy
from quantaudit.provenance import SPLITS, SiteInfo, Unmeasured
from quantaudit.simulate.records import ScaleRow, Simulation
from quantaudit.stats.octaves import octaves
from quantaudit.stats.peaks import Peaks
from quantaudit.stats.site import SiteStatistics, summary

PEAKS_SHOWN = 5


def build_card(
    profile: Profile,
    scales: Sequence[ScaleRow],
    simulation: Simulation | None,
    policy: Policy,
    *,
    timings: Mapping[str, float],
    redact_text: bool = False,
    created: datetime | None = None,
) -> Card:
    """The card of one audit.

    timings: seconds by stage. redact_text: leaves out what the corpus' text could be rebuilt from. created: else now.
    Raises FormatError where the simulation is not of this profile.
    """
    if redact_text:
        simulation = simulation and redact_simulation(simulation, profile.provenance.corpus, profile.samples)
        profile = redact(profile)
    provenance = profile.provenance
    sites = [site_row(profile, site) for site in profile.sites if site.kind not in experts.KINDS]
    peak = peak_summary(sites)
    covered = coverage(profile)
    stability = stability_info(profile, peak)
    findings = find(
        CardEvidence(
            provenance=provenance,
            sites=sites,
            coverage=covered,
            peak=peak,
            policy=policy,
            simulation=simulation,
            stability=stability,
        )
    )
    card = Card(
        quantaudit_version=__version__,
        created=(created or datetime.now(UTC)).isoformat(timespec="seconds"),
        profile_sha256=profile.digest,
        model=provenance.model,
        corpus=provenance.corpus,
        environment=provenance.environment.model_copy(
            update={"timings": {stage: round(seconds, 2) for stage, seconds in timings.items()}}
        ),
        peak=peak,
        coverage=covered,
        sites=sites,
        scales=list(scales),
        simulation=simulation,
        verification=[],
        correlation=correlate(simulation, predictors(profile)) if simulation else [],
        stability=stability,
        places=places_info(profile),
        experts=experts.experts_info(profile),
        landscape=landscape(sites, peak),
        findings=findings,
        verdict=decide(sites, covered, simulation, findings, policy, provenance.corpus),
    )
    if simulation is not None:
        check_simulation(simulation, card, where="simulation")
    return seal(card)


def site_row(profile: Profile, site: SiteInfo) -> SiteRow:
    """One site over both splits; zeros and nulls where it never fired."""
    whole = profile.whole(site.name)
    if whole is None:
        blank = dict.fromkeys(("amax", "min", "max", "mean", "rms", "median", "p99", "p999", "p9999"))
        return SiteRow(
            **site.model_dump(include={"name", "kind", "layer", "module", "tap"}),
            **blank,
            channels=0,
            tokens=0,
            nonfinite=0,
            massive=0,
            peaks=[],
            domains={},
        )
    described = summary(whole)
    return SiteRow(
        **site.model_dump(include={"name", "kind", "layer", "module", "tap"}),
        channels=len(whole.channel_amax),
        amax=described.amax,
        min=described.min,
        max=described.max,
        mean=described.mean,
        rms=described.rms,
        median=described.median,
        p99=described.p99,
        p999=described.p999,
        p9999=described.p9999,
        tokens=whole.tokens,
        nonfinite=described.nan + described.inf,
        massive=whole.massive,
        peaks=_peaks(profile, whole.peaks),
        domains=_domains(profile, whole),
        magnitudes=_magnitudes(whole) if site.kind == "linear_input" else None,
    )


def peak_summary(sites: Sequence[SiteRow]) -> PeakSummary:
    """The paper's M, its counterpart among quantized tensors, and how far the residual stream is from FP16's limit."""
    residual = [site.amax for site in sites if site.kind in ("residual", "embedding") and site.amax]
    return PeakSummary(
        overall=_highest(sites),
        quantized=_highest([site for site in sites if site.kind == "linear_input"]),
        fp16_headroom=FP16_MAX / max(residual) if residual else None,
    )


def landscape(sites: Sequence[SiteRow], peak: PeakSummary) -> Landscape:
    """The model's place among published ones, whose peaks are of other tensors than inputs of Linears."""
    site = compared_site(sites)
    inside = peak.overall is not None and (site is None or peak.overall.site != site.name)
    return place(site.amax if site else None, of="A peak, Linears’ inputs aside," if inside else "A peak")


def coverage(profile: Profile) -> Coverage:
    """What was measured. A Linear counts when its input was seen in both splits, and is left out if it has none."""
    provenance = profile.provenance
    silent = {row.module for row in provenance.unmeasured}
    without = {row.module for row in provenance.unmeasured if not row.weights}
    linears = {
        member: site.all_tokens or site.name
        for site in profile.sites
        for member in site.members
        if member not in without
    }
    measured = [site for site in profile.sites if profile.whole(site.name) is not None]
    half = {
        member: split
        for split in SPLITS
        for member, site in linears.items()
        if member not in silent and profile.split(site, split) is None
    }
    return Coverage(
        sites=len(profile.sites),
        sites_measured=len(measured),
        linears=len(linears),
        linears_measured=sum(member not in silent and member not in half for member in linears),
        tokens=provenance.corpus.tokens,
        unmeasured=[
            *provenance.unmeasured,
            *(
                Unmeasured(module=member, reason=f"saw no token of the {split} split", weights=True, cause="one_split")
                for member, split in half.items()
                if getattr(provenance.corpus, split).tokens
            ),
        ],
    )


def _highest(sites: Sequence[SiteRow]) -> GlobalPeak | None:
    measured = [site for site in sites if site.amax is not None]
    if not measured:
        return None
    site = max(measured, key=lambda row: row.amax or 0.0)
    peak = site.peaks[0] if site.peaks else None
    return GlobalPeak(
        site=site.name,
        kind=site.kind,
        layer=site.layer,
        amax=site.amax,
        value=peak.value if peak else None,
        domain=peak.domain if peak else None,
        position=peak.position if peak else None,
        token=peak.token if peak else None,
        token_kind=peak.token_kind if peak else None,
        channel=peak.channel if peak else None,
    )


def _peaks(profile: Profile, peaks: Peaks) -> list[Peak]:
    text, redacted = profile.provenance.token_text, profile.provenance.corpus.redacted
    rows = []
    for i in range(min(PEAKS_SHOWN, len(peaks.value))):
        sample, token = profile.samples[peaks.sample[i]], int(peaks.token[i])
        rows.append(
            Peak(
                value=float(peaks.value[i]),
                sample=sample.id,
                domain=sample.domain,
                position=None if redacted and peaks.position[i] else int(peaks.position[i]),
                token_id=None if redacted else token,
                token=None if redacted else text.get(token),
                token_kind=token_kind(token, text.get(token)),
                channel=int(peaks.channel[i]),
                median=float(peaks.median[i]),
            )
        )
    return rows


def _magnitudes(whole: SiteStatistics) -> MagnitudesRow | None:
    counted = octaves(whole.distribution)
    return None if counted is None else MagnitudesRow.model_validate(asdict(counted))


def _domains(profile: Profile, whole: SiteStatistics) -> dict[str, float]:
    """Domain → amax, from the extremes of its samples; NaN where one of them held a NaN."""
    amax = np.maximum(whole.extremes.max, -whole.extremes.min)
    highest: dict[str, float] = {}
    for sample, value in zip(whole.extremes.sample, amax, strict=True):
        domain = profile.samples[sample].domain
        highest[domain] = float(np.maximum(highest.get(domain, 0.0), value))
    return dict(sorted(highest.items()))
