"""From a profile to quantization parameters: which tensors can be quantized, and over which calibrated range."""

from __future__ import annotations

import torch
from compressed_tensors.quantization import QuantizationArgs

from quantaudit.measure.profile import Profile
from quantaudit.provenance import SiteInfo
from quantaudit.quant.observers import Observed, QParams, qparams_from
from quantaudit.stats.site import summary


def quantizable(profile: Profile) -> list[SiteInfo]:
    """Sites that a recipe can quantize: the inputs of Linears."""
    return [site for site in profile.sites if site.kind == "linear_input"]


def model_dtype(profile: Profile) -> torch.dtype:
    """The checkpoint's dtype, in which llm-compressor computes and stores scales."""
    dtype: torch.dtype = getattr(torch, profile.provenance.model.dtype)
    return dtype


def site_qparams(profile: Profile, site: str, args: QuantizationArgs, observer: str) -> QParams | None:
    """Quantization parameters of one tensor from what calibrates it; None without a finite value."""
    calibrated = observed(profile, site)
    return None if calibrated is None else qparams_from(calibrated, args, observer)


def observed(profile: Profile, site: str) -> Observed | None:
    """What calibrates one tensor; None where that saw nothing, and not a number for a range that is not finite."""
    calibration = profile.calibration(site)
    if calibration is None or not len(calibration.extremes.sample):
        return None
    described = summary(calibration)
    broken = described.nan or described.inf
    return Observed(
        distribution=calibration.distribution,
        exact=(float("nan"), float("nan")) if broken else calibration.range,
        lows=calibration.extremes.min,
        highs=calibration.extremes.max,
        dtype=model_dtype(profile),
    )
