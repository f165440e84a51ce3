"""The paper's check of INT8: one scale for a tensor of the residual stream, its range from calibration samples, the
errors on others, with and without clipping.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quantaudit.stats.distribution import Distribution, finite, quantiles

CLIPS = (0.99, 0.999, 0.9999, 0.99999)
"""Quantiles of |x| that a range is cut at; the paper cuts at .999, and does not cut."""
CODES = 127
"""Of either sign: the symmetric grid −127 … 127, as in the paper, whose scale is the end of the range over 127."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippingErrors:
    """What a range [−threshold, threshold] costs. clip: the quantile that it is, None for the largest |x|.

    mae, rmse in the tensor's units, relative ones over mean |x| and RMS, SQNR in dB, clip_rate a share of the values.
    """

    clip: float | None
    threshold: float
    mae: float
    rmse: float
    relative_mae: float
    relative_rmse: float
    sqnr_db: float
    clip_rate: float


def clipping_errors(evaluation: Distribution, threshold: float, clip: float | None) -> ClippingErrors:
    """Errors of the finite values under this range, float64; NaN where there are none, or no range."""
    values, counts = finite(evaluation)
    x, n = values.astype(np.float64), counts.sum()
    if not n or not threshold > 0:
        nothing = dict.fromkeys(("mae", "rmse", "relative_mae", "relative_rmse", "sqnr_db", "clip_rate"), math.nan)
        return ClippingErrors(clip=clip, threshold=threshold, **nothing)
    scale = threshold / CODES
    error = np.rint(x.clip(-threshold, threshold) / scale) * scale - x
    absolute, square = float(np.abs(error) @ counts), float(error**2 @ counts)
    magnitude, power = float(np.abs(x) @ counts), float(x**2 @ counts)
    return ClippingErrors(
        clip=clip,
        threshold=threshold,
        mae=absolute / n,
        rmse=math.sqrt(square / n),
        relative_mae=absolute / magnitude if magnitude else math.nan,
        relative_rmse=math.sqrt(square / power) if power else math.nan,
        sqnr_db=10 * math.log10(power / square) if power and square else math.inf if power else math.nan,
        clip_rate=float((np.abs(x) > threshold) @ counts) / n,
    )


def clip_sweep(calibration: Distribution, evaluation: Distribution) -> list[dict[str, Any]]:
    """The largest |x| of the calibration samples as the range, then each of CLIPS, on the evaluation samples."""
    magnitudes = np.abs(finite(calibration)[0])
    if not len(magnitudes):
        return []
    cuts = zip(CLIPS, quantiles(calibration, list(CLIPS)), strict=True)
    ranges: list[tuple[float | None, float]] = [(None, float(magnitudes.max())), *cuts]
    return [asdict(clipping_errors(evaluation, threshold, clip)) for clip, threshold in ranges]
