"""A profile under the names of *Measuring Maximum Activations in Open Large Language Models* (arXiv 2605.15572).

For comparing a measurement with the paper's, or with any other tool's: plain JSON with every statistic that the paper
reports, from the profile alone. Differences that cannot be removed are written down in docs/statistics.md.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from quantaudit.measure.profile import Profile
from quantaudit.provenance import SiteInfo
from quantaudit.stats import distribution
from quantaudit.stats.distribution import MASSIVE_FLOOR, MASSIVE_RATIO, interpolated_quantiles, massive_threshold
from quantaudit.stats.site import SiteStatistics, summary

FORMAT_VERSION = 2
"""History: 1 first edition; 2 massive activations by the median of their own token, which `top` gives, and
interpolated quantiles."""

COMPONENTS = {
    "embedding": "embedding",
    "residual": "hidden",
    "attention_output": "attention_output",
    "mlp_output": "mlp_output",
    "gate": "gate",
    "router_logits": "router_logits",
    "final_norm": "final_norm",
}
"""Kind of a site → the paper's name for it. Inputs of Linears are no component of the paper."""

LEVELS = (0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
TOP = 20
"""Largest elements written for each site, of the hundred in a profile."""


def reference_json(profile: Profile) -> str:
    """The export as JSON text ending in a newline; a number that is not finite is null."""
    return json.dumps(reference(profile), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def reference(profile: Profile) -> dict[str, Any]:
    """Statistics of every measured site over both splits, and the paper's M: the largest |a| of its components."""
    sites = [row for site in profile.sites if (row := site_statistics(profile, site)) is not None]
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
        "unmeasured": [row.model_dump() for row in profile.provenance.unmeasured],
        "sites": sites,
    }


def site_statistics(profile: Profile, site: SiteInfo) -> dict[str, Any] | None:
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
