"""Profile → how far its peaks can be trusted: subsets, domains, lengths, ten times the samples, the other split."""

from __future__ import annotations

import numpy as np

from quantaudit.card.schema import (
    BucketRow,
    ExceedanceInfo,
    ExceedanceRow,
    GlobalPeak,
    PeakStability,
    PeakSummary,
    StabilityInfo,
    SubsetRow,
    TailRow,
)
from quantaudit.card.text import counted, number
from quantaudit.measure.profile import Profile
from quantaudit.stats.maxima import stability, tail
from quantaudit.stats.maxima.stability import Exceedance
from quantaudit.stats.maxima.tail import Tail

WORST_SHOWN = 5


def stability_info(profile: Profile, peak: PeakSummary) -> StabilityInfo:
    """Stability of the two peaks that the card leads with, and the evaluation split against the calibration range."""
    return StabilityInfo(
        overall=peak_stability(profile, peak.overall) if peak.overall else None,
        quantized=peak_stability(profile, peak.quantized) if peak.quantized else None,
        exceedance=exceedance_info(profile),
    )


def peak_stability(profile: Profile, peak: GlobalPeak) -> PeakStability | None:
    """What the maxima of single samples say about one site's peak; None where no sample is finite."""
    whole = profile.whole(peak.site)
    every = stability.sample_amax(whole.extremes) if whole else np.empty(0)
    finite = np.isfinite(every)
    if whole is None or not finite.any():
        return None
    amax, indices = every[finite], whole.extremes.sample[finite]
    subsets = [stability.subset_maximum(amax, size) for size in stability.subset_sizes(len(amax))]
    by_domain = stability.maxima_by(amax, [profile.samples[index].domain for index in indices])
    by_length = stability.maxima_by_length(amax, whole.extremes.tokens[finite])
    rows = [SubsetRow(samples=row.samples, mean=row.mean, variation=row.variation) for row in subsets]
    return PeakStability(
        site=peak.site,
        samples=len(amax),
        left_out=int((~finite).sum()),
        amax=float(amax.max()),
        subsets=rows,
        by_domain=[BucketRow(name=name, samples=row.samples, amax=row.amax) for name, row in by_domain.items()],
        by_length=[
            BucketRow(name=_tokens(first, last), samples=row.samples, amax=row.amax) for first, last, row in by_length
        ],
        tail=_tail(tail.fit(amax)),
        reading=_reading(rows[-1] if rows else None, len(amax)),
    )


def exceedance_info(profile: Profile) -> ExceedanceInfo:
    """All inputs of Linears: where the evaluation split goes beyond the calibration split's absolute maximum."""
    splits = {
        site.name: (profile.calibration(site.name), profile.split(site.name, "evaluation"))
        for site in profile.sites
        if site.kind == "linear_input"
    }
    beyond = stability.worst_exceedances(splits)
    compared = sum(calibration is not None and evaluation is not None for calibration, evaluation in splits.values())
    return ExceedanceInfo(
        compared=compared,
        beyond=len(beyond),
        worst=[_exceedance_row(name, row) for name, row in beyond[:WORST_SHOWN]],
        reading=_exceedance_reading(compared, beyond),
    )


def _tail(fit: Tail | None) -> TailRow | None:
    if fit is None:
        return None
    reading = (
        f"{fit.horizon:,} new samples of this kind of text would peak at about {number(fit.median)}, with "
        f"{tail.COVERAGE:.0%} probability between {number(fit.low)} and {number(fit.high)}."
    )
    if fit.few:
        reading += (
            f" With {counted(fit.samples, 'sample')}, fewer than {tail.TRUSTED}, this is a rough guess: "
            "the high end rests on an assumption more than on data."
        )
    return TailRow(
        samples=fit.samples,
        exceedances=fit.exceedances,
        horizon=fit.horizon,
        coverage=tail.COVERAGE,
        shape=fit.shape,
        low=fit.low,
        median=fit.median,
        high=fit.high,
        few_samples=fit.few,
        reading=reading,
    )


def _exceedance_row(site: str, row: Exceedance) -> ExceedanceRow:
    return ExceedanceRow(
        site=site,
        calibration_amax=row.calibration_amax,
        evaluation_amax=row.evaluation_amax,
        ratio=row.ratio,
        samples=row.samples,
        samples_beyond=row.samples_beyond,
        elements_beyond=row.share_elements,
    )


def _reading(subset: SubsetRow | None, samples: int) -> str:
    if subset is None:
        few = f"{counted(samples, 'sample')} {'is' if samples == 1 else 'are'} too few"
        return f"{few} to tell how far the peak varies between subsets of them."
    return (
        f"Over all subsets of {subset.samples:,} of the {counted(samples, 'sample')} the peak is "
        f"{number(subset.mean)} on average and varies by {subset.variation or 0.0:.1%} (standard deviation over mean)."
    )


def _exceedance_reading(compared: int, beyond: list[tuple[str, Exceedance]]) -> str:
    if not compared:
        return "No input of a Linear was measured on both splits."
    if not beyond:
        return f"At none of {compared:,} inputs of Linears does the evaluation split leave the calibration range."
    name, worst = beyond[0]
    return (
        f"At {len(beyond):,} of {compared:,} inputs of Linears the evaluation split leaves the calibration range; "
        f"at `{name}`, the worst, its peak is {worst.ratio:.3g} times as high."
    )


def _tokens(first: int, last: int | None) -> str:
    return f"{counted(first, 'token')} and more" if last is None else f"{first:,} to {counted(last, 'token')}"
