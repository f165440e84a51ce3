"""Every statistic that the paper and its repository report, as plain JSON.

For comparing a measurement with the paper's, or with any other tool's. All of it comes from the profile but for the
ratios of tokens, which a pass of their own gathers. Differences that cannot be removed are written down in
docs/statistics.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quantaudit.measure.paper.clipping import clip_sweep
from quantaudit.measure.profile import Profile
from quantaudit.provenance import COMPONENTS, SPLITS, SiteInfo
from quantaudit.stats import distribution
from quantaudit.stats.distribution import MASSIVE_FLOOR, MASSIVE_RATIO, interpolated_quantiles, massive_threshold
from quantaudit.stats.maxima.shape import Highest, maximum_shape
from quantaudit.stats.maxima.stability import sample_amax, stratified_maximum
from quantaudit.stats.site import SiteStatistics, summary

FORMAT_VERSION = 3
"""History: 1 first edition; 2 massive activations by the median of their own token, which `top` gives, and
interpolated quantiles; 3 shape of the maximum, subsets, ratios of tokens, INT8 with clipping."""

LEVELS = (0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
TOP = 20
"""Largest elements written for each site, of the hundred in a profile."""
SUBSETS = (0.2, 0.4)
"""Shares of the samples: the paper draws 1,000 and 2,000 of its 5,000."""
REPEATS = 5
"""Subsets of each size between which the paper takes the spread."""
QUANTIZED = ("residual", "final_norm")
"""Kinds of sites that the paper quantizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRatios:
    """Largest over median |x| of each token's channels: the highest, the mean and the deviation (of the population).

    tokens: those whose median is above zero. The median is the lower one of two.
    """

    tokens: int
    highest: float
    mean: float
    std: float


def reference_json(profile: Profile, ratios: Mapping[str, TokenRatios] | None = None) -> str:
    """The export as JSON text ending in a newline; a number that is not finite is null."""
    return json.dumps(reference(profile, ratios), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def reference(profile: Profile, ratios: Mapping[str, TokenRatios] | None = None) -> dict[str, Any]:
    """Statistics of every measured site over both splits, and the paper's M: the largest |a| of its components.

    ratios: of tokens, by site, where they were gathered.
    """
    known = ratios or {}
    sites = [row for site in profile.sites if (row := site_statistics(profile, site, known.get(site.name))) is not None]
    components = [row for row in sites if row["component"] is not None and row["max_abs"] is not None]
    highest = max(components, key=lambda row: float(row["max_abs"]), default=None)
    return {
        "format": "quantaudit reference statistics",
        "format_version": FORMAT_VERSION,
        "source": "arXiv 2605.15572",
        "quantaudit_version": profile.provenance.quantaudit_version,
        "model": profile.provenance.model.name,
        "dtype": profile.provenance.model.dtype,
        "fingerprint": profile.provenance.model.fingerprint,
        "corpus": profile.provenance.corpus.name,
        "corpus_sha256": profile.provenance.corpus.sha256,
        "samples": len(profile.samples),
        "tokens": profile.provenance.corpus.tokens,
        "M": {key: highest[key] for key in ("max_abs", "site", "component", "layer")} if highest else None,
        "shape": _shape(profile),
        "subsets": subsets(profile),
        "unmeasured": [row.model_dump() for row in profile.provenance.unmeasured],
        "sites": sites,
    }


def _shape(profile: Profile) -> dict[str, Any] | None:
    """What is nearly as high as M: the top five, their sign and concentration, hot tensors, the largest step."""
    sites = [(site, whole) for site in profile.sites if (whole := profile.whole(site.name)) and site.kind in COMPONENTS]
    highest = [Highest(tensor=site.name, values=whole.peaks.value[:TOP].tolist()) for site, whole in sites]
    residual = [_number(summary(whole).amax) for site, whole in sites if site.kind == "residual"]
    shape = maximum_shape(highest, residual)
    return None if shape is None else asdict(shape)


def subsets(profile: Profile) -> list[dict[str, Any]]:
    """How M varies over subsets of the samples that hold every domain in proportion; empty without finite samples."""
    amax = np.full(len(profile.samples), -np.inf)
    for site in profile.sites:
        whole = profile.whole(site.name)
        if site.kind in COMPONENTS and whole is not None:
            by_sample = sample_amax(whole.extremes)
            amax[whole.extremes.sample] = np.maximum(amax[whole.extremes.sample], by_sample)
    kept = np.flatnonzero(np.isfinite(amax))
    domains = [profile.samples[index].domain for index in kept]
    sizes = [round(share * len(kept)) for share in SUBSETS]
    return [asdict(stratified_maximum(amax[kept], domains, size, REPEATS)) for size in sizes if size]


def _ratios(row: TokenRatios | None) -> dict[str, Any]:
    """What the repository calls sun_max_ratio, sun_mean_ratio and sun_std_ratio; null where they were not gathered."""
    if row is None:
        return {"max_ratio": None, "mean_ratio": None, "std_ratio": None}
    return {"max_ratio": _number(row.highest), "mean_ratio": _number(row.mean), "std_ratio": _number(row.std)}


def _sweep(profile: Profile, site: SiteInfo) -> list[dict[str, Any]] | None:
    """Errors of INT8 with one scale; null for tensors that the paper does not quantize, and without both splits."""
    calibration, evaluation = (profile.split(site.name, split) for split in SPLITS)
    if site.kind not in QUANTIZED or calibration is None or evaluation is None:
        return None
    rows = clip_sweep(calibration.distribution, evaluation.distribution)
    return [{key: value if value is None else _number(value) for key, value in row.items()} for row in rows]


def site_statistics(profile: Profile, site: SiteInfo, ratios: TokenRatios | None = None) -> dict[str, Any] | None:
    """One site's statistics, in the tensor's units; quantiles and abs_mean of |x|. None where it never fired."""
    whole = profile.whole(site.name)
    if whole is None:
        return None
    described = summary(whole)
    std, abs_mean = spread(whole)
    return {
        "site": site.name,
        "component": COMPONENTS.get(site.kind),
        "layer": site.layer,
        "tokens": whole.tokens,
        "values": described.values,
        "nan": described.nan,
        "inf": described.inf,
        "max": _number(described.max),
        "min": _number(described.min),
        "max_abs": _number(described.amax),
        "mean": _number(described.mean),
        "std": _number(std),
        "abs_mean": _number(abs_mean),
        "rms": _number(described.rms),
        "quantiles": {
            str(level): _number(value)
            for level, value in zip(LEVELS, interpolated_quantiles(whole.distribution, list(LEVELS)), strict=True)
        },
        "massive_activations": {
            "count": whole.massive,
            "count_by_tensor_median": above(whole, massive_threshold(described.median)),
            "above": MASSIVE_FLOOR,
            "above_medians": MASSIVE_RATIO,
        },
        "token_ratios": _ratios(ratios),
        "int8": _sweep(profile, site),
        "top": _top(profile, whole),
    }


def spread(statistics: SiteStatistics) -> tuple[float, float]:
    """Standard deviation (of the population) and mean |x| of the finite values, float64; NaN where there are none."""
    values, counts = distribution.finite(statistics.distribution)
    if not len(values):
        return math.nan, math.nan
    wide, total = values.astype(np.float64), counts.sum()
    deviation = wide - wide @ counts / total
    return float(np.sqrt(deviation**2 @ counts / total)), float(np.abs(wide) @ counts / total)


def above(statistics: SiteStatistics, threshold: float) -> int:
    """Finite elements of larger magnitude."""
    absolute, counts = distribution.magnitudes(statistics.distribution)
    return int(counts[absolute > threshold].sum())


def _top(profile: Profile, statistics: SiteStatistics) -> list[dict[str, Any]]:
    peaks = statistics.peaks
    return [
        {
            "value": float(peaks.value[i]),
            "sample": profile.samples[peaks.sample[i]].id,
            "position": int(peaks.position[i]),
            "token_id": int(peaks.token[i]),
            "channel": int(peaks.channel[i]),
            "token_median": _number(float(peaks.median[i])),
            "massive": bool(abs(float(peaks.value[i])) > massive_threshold(float(peaks.median[i]))),
        }
        for i in range(min(TOP, len(peaks.value)))
    ]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
