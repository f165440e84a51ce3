"""What static quantization does to one tensor, exactly, from its distribution: no single number may decide alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationType
from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
from compressed_tensors.quantization.utils import calculate_range
from numpy.typing import NDArray

from quantaudit.quant.observers import QParams, Range
from quantaudit.stats.distribution import Distribution, finite, massive_threshold, quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorErrors:
    """What quantization costs one tensor, by six measures.

    sqnr_db, bulk_sqnr_db: dB, inf where nothing is lost; the others are shares, and levels a count up to 256.
    """

    sqnr_db: float
    bulk_sqnr_db: float
    relative_mae: float
    zeroed_fraction: float
    effective_levels: float
    clip_rate: float


def tensor_errors(
    distribution: Distribution, qparams: QParams, args: QuantizationArgs, exact: Range | None = None
) -> TensorErrors:
    """Errors of the finite values, each distinct one quantized once by compressed_tensors and weighted by its count.

    exact: the tensor's true minimum and maximum, where known; float32 values that the distribution rounded past them
    would look clipped, and are drawn back. Quantization runs in the scale's dtype, as in compressed-tensors; sums in
    float64. NaN for an empty tensor.
    """
    values, counts = finite(distribution)
    if not len(values):
        return TensorErrors(**dict.fromkeys(TensorErrors.__slots__, float("nan")))
    if exact is not None and np.isfinite(exact).all():
        values = values.clip(*exact)
    x = torch.from_numpy(values).to(qparams.scale.dtype)
    restored = fake_quantize(x, qparams.scale, qparams.zero_point, args).double().numpy()
    codes = quantize(x, qparams.scale, qparams.zero_point, args).double().numpy()
    wide = x.double().numpy()
    error = wide - restored
    (median,) = quantiles(distribution, [0.5])
    bulk = np.abs(wide) <= massive_threshold(median)
    nonzero = wide != 0
    zeroed = nonzero & (restored == 0)
    return TensorErrors(
        sqnr_db=_decibel(wide**2 @ counts, error**2 @ counts),
        bulk_sqnr_db=_decibel((wide**2 * bulk) @ counts, (error**2 * bulk) @ counts),
        relative_mae=_ratio(np.abs(error) @ counts, np.abs(wide) @ counts),
        zeroed_fraction=_ratio(zeroed @ counts, nonzero @ counts),
        effective_levels=_effective_levels(codes, counts),
        clip_rate=_ratio(_clipped(wide, qparams, args) @ counts, counts.sum()),
    )


def _clipped(x: NDArray[np.float64], qparams: QParams, args: QuantizationArgs) -> NDArray[np.bool_]:
    """Values whose error exceeds half a step because the grid ends, in real arithmetic.

    The scale's own rounding to 16 bits is allowed for: it moves amax past the last half step, and is not clipping.
    """
    low, high = (float(bound) for bound in calculate_range(args, qparams.scale.device))
    half = 0.5 if args.type == QuantizationType.INT else 0.0
    slack = 1 + torch.finfo(qparams.scale.dtype).eps / 2
    code, zero = x / float(qparams.scale), float(qparams.zero_point)
    return np.asarray((code > (high + half - zero) * slack) | (code < (low - half - zero) * slack))


def _effective_levels(codes: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """2^entropy of the codes: how many levels a uniform code of the same information would use."""
    _, inverse = np.unique(codes, return_inverse=True)
    share = np.bincount(inverse, weights=counts) / counts.sum()
    share = share[share > 0]
    return float(2 ** -(share @ np.log2(share)))


def _decibel(signal: Any, noise: Any) -> float:
    if signal == 0:
        return float("nan")
    return float(10 * np.log10(signal / noise)) if noise > 0 else float("inf")


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0
