"""What activation statistics alone can decide about a recipe. Nothing is simulated: no KL, no damage to the output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from compressed_tensors.quantization import QuantizationArgs

from quantaudit.card.build import coverage, peak_summary, site_row
from quantaudit.card.judge.findings import overflows
from quantaudit.card.schema import Finding
from quantaudit.card.text import counted, share_in_words
from quantaudit.common.findings import Hit
from quantaudit.common.outcome import SEVERITY_ORDER
from quantaudit.measure.profile import Profile
from quantaudit.policy import Policy
from quantaudit.provenance import SiteInfo
from quantaudit.quant.errors import tensor_errors
from quantaudit.quant.observers import OBSERVERS, observer_of
from quantaudit.quant.ranges import site_qparams
from quantaudit.stats.site import SiteStatistics, summary


def judge_inputs(profile: Profile, targets: Mapping[str, QuantizationArgs], policy: Policy) -> list[Finding]:
    """Findings about the inputs that a recipe quantizes, errors first, the worst of a kind first.

    targets: Linear → how its input is quantized.
    Static scales are those that the recipe's observer takes from the calibration split, sample by sample (the absolute
    maximum where it is one that cannot be replayed); errors are of all tokens.
    """
    chosen: dict[str, tuple[SiteInfo, QuantizationArgs]] = {}
    lost: list[str] = []
    silent = {row.module for row in profile.provenance.unmeasured}
    for member, args in targets.items():
        site = profile.input_site(member)
        if site is None or member in silent or _seen(profile, site) is None:
            lost.append(member)
        else:
            chosen.setdefault(site.name, (site, args))
    findings = [_unseen(member) for member in lost]
    for site, args in chosen.values():
        whole = _seen(profile, site)
        assert whole is not None
        described = summary(whole)
        if described.nan or described.inf:
            findings.append(_nonfinite(site, described.nan + described.inf))
        elif args.dynamic is False and args.strategy == "tensor":
            findings += _zeroed(profile, site, whole, args, policy)
    findings += _headroom(profile, policy)
    return sorted(
        findings, key=lambda finding: (SEVERITY_ORDER[finding.severity], finding.code, -(finding.value or 0.0))
    )


def _seen(profile: Profile, site: SiteInfo) -> SiteStatistics | None:
    """What passed through; for an expert that no token was routed to, what it was calibrated on all the same."""
    whole = profile.whole(site.name)
    return whole if whole is not None or site.all_tokens is None else profile.whole(site.all_tokens)


def _unseen(member: str) -> Finding:
    hit = Hit(
        severity="error",
        module=member,
        message="its input is to be quantized, and no calibration token reached it",
        value=0.0,
        why="What was not measured cannot be declared safe, and its scale would be whatever memory held.",
        remedy="Calibrate on text that reaches this module, or add it to the recipe's `ignore`.",
    )
    return Finding.of("QA101", hit)


def _nonfinite(site: SiteInfo, values: int) -> Finding:
    hit = Hit(
        module=site.module,
        message=f"{values:,} NaN or infinite values in its input",
        value=float(values),
        threshold=0.0,
        why="A scale taken from them is no number, and is saved without an error.",
        remedy="Load the model in a wider dtype, and check its weights.",
    )
    return Finding.of("QA102", hit)


def _zeroed(
    profile: Profile, site: SiteInfo, whole: SiteStatistics, args: QuantizationArgs, policy: Policy
) -> list[Finding]:
    low, high = float(whole.extremes.min.min()), float(whole.extremes.max.max())
    observer = observer_of(args)
    if observer not in OBSERVERS:
        observer = "absolute_maximum"
    qparams = site_qparams(profile, site.name, args, observer)
    if qparams is None:
        return []
    errors = tensor_errors(whole.distribution, qparams, args, (low, high))
    limit = policy.zeroed_fraction
    if math.isnan(errors.zeroed_fraction) or errors.zeroed_fraction <= limit.warning:
        return []
    hit = Hit(
        severity="error",
        module=site.module,
        message=(
            f"a static scale ({observer}) rounds {share_in_words(errors.zeroed_fraction)} of its input to zero: "
            f"it peaks at {max(-low, high):,.4g}, and keeps {errors.effective_levels:.1f} levels "
            f"(SQNR {errors.sqnr_db:.1f} dB)"
        ),
        value=errors.zeroed_fraction,
        threshold=limit.warning,
        why=limit.reason,
        remedy="Quantize this input dynamically per token, or add the module to the recipe's `ignore`.",
    )
    return [Finding.of("QA302", hit)]


def _headroom(profile: Profile, policy: Policy) -> list[Finding]:
    """QA201; where the model runs in another dtype than float16 it is a warning at most, as nothing overflows here."""
    peak = peak_summary([site_row(profile, site) for site in profile.sites])
    rows = [Finding.of("QA201", hit) for hit in overflows(peak, policy)]
    if profile.provenance.model.dtype == "float16":
        return rows
    return [row.model_copy(update={"severity": "warning"}) for row in rows]


def own_tokens(profile: Profile) -> Profile:
    """The same where experts are calibrated on the tokens routed to them alone: no wider ranges stand in for theirs."""
    sites = [site.model_copy(update={"all_tokens": None}) for site in profile.sites]
    return replace(profile, provenance=profile.provenance.model_copy(update={"sites": sites}))


def measured(profile: Profile) -> str:
    """How much was measured, in words."""
    sites = coverage(profile)
    corpus = profile.provenance.corpus
    text = f"{counted(corpus.samples, 'sample')}, {counted(corpus.tokens, 'token')}"
    return f"{text}, {sites.sites_measured:,} of {sites.sites:,} tensors"
