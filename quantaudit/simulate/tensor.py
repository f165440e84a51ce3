"""Tensor by tensor, offline: scales from the calibration split, errors on the evaluation split, no model needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from compressed_tensors.quantization import QuantizationArgs

from quantaudit.simulate.records import ScaleRow, TensorErrorRow
from quantaudit.profile import Profile
from quantaudit.provenance import SiteInfo
from quantaudit.quant.errors import tensor_errors
from quantaudit.quant.scales import OBSERVERS, QParams, applies, derive
from quantaudit.quant.schemes import FORMATS
from quantaudit.stats.site import summary


def quantizable(profile: Profile) -> list[SiteInfo]:
    """Sites that a recipe can quantize: the inputs of Linears."""
    return [site for site in profile.sites if site.kind == "linear_input"]


def model_dtype(profile: Profile) -> torch.dtype:
    """The checkpoint's dtype, in which the toolkit computes and stores scales."""
    dtype: torch.dtype = getattr(torch, profile.provenance.model.dtype)
    return dtype


def site_qparams(profile: Profile, site: str, args: QuantizationArgs, observer: str) -> QParams | None:
    """Quantization parameters of one tensor from the calibration split; None where it saw nothing finite."""
    calibration = profile.split(site, "calibration")
    if calibration is None:
        return None
    low, high = calibration.extremes.min, calibration.extremes.max
    described = summary(calibration)
    broken = described.nan or described.inf or not len(low)
    exact = (float("nan"), float("nan")) if broken else (float(low.min()), float(high.max()))
    return derive(calibration.distribution, exact, args, observer, model_dtype(profile))


def scale_table(profile: Profile) -> tuple[list[ScaleRow], list[TensorErrorRow]]:
    """Scales for every quantizable tensor, format and observer, and what each does to the evaluation split."""
    scales: list[ScaleRow] = []
    errors: list[TensorErrorRow] = []
    for site in quantizable(profile):
        for name, args, observer, qparams in _derived(profile, site):
            row = ScaleRow(
                site=site.name,
                group=site.name.removesuffix(".input"),
                format=name,
                observer=observer,
                min=qparams.min,
                max=qparams.max,
                scale=float(qparams.scale),
                zero_point=int(qparams.zero_point),
            )
            scales.append(row)
            evaluation = profile.split(site.name, "evaluation")
            if evaluation is not None:
                found = tensor_errors(evaluation.distribution, qparams, args)
                errors.append(
                    TensorErrorRow(
                        site=row.site,
                        group=row.group,
                        scheme=name,
                        observer=observer,
                        scale=row.scale,
                        zero_point=row.zero_point,
                        sqnr_db=found.sqnr_db,
                        bulk_sqnr_db=found.bulk_sqnr_db,
                        relative_mae=found.relative_mae,
                        zeroed_fraction=found.zeroed_fraction,
                        effective_levels=found.effective_levels,
                        clip_rate=found.clip_rate,
                    )
                )
    return scales, errors


def _derived(profile: Profile, site: SiteInfo) -> Iterator[tuple[str, QuantizationArgs, str, QParams]]:
    for name, args in FORMATS.items():
        for observer in OBSERVERS:
            if applies(observer, args):
                qparams = site_qparams(profile, site.name, args, observer)
                if qparams is not None:
                    yield name, args, observer, qparams
