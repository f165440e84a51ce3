"""Observers: from a tensor's calibration distribution to a range, and from there to a scale as the toolkit does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationType
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from quantaudit.errors import UsageError
from quantaudit.stats.distribution import Distribution, finite, quantiles

Range = tuple[float, float]
"""(minimum, maximum) that the quantization grid spans; what lies outside is clipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QParams:
    """x ≈ (q − zero_point) · scale. scale, zero_point: [1], the scale in the model's dtype as it is saved."""

    min: float
    max: float
    scale: Tensor
    zero_point: Tensor


def absolute_maximum(distribution: Distribution, exact: Range, args: QuantizationArgs) -> Range:
    """The whole range: compressed_tensors' `static_minmax`. INT8 symmetric gives amax / 127.5."""
    return exact


def absolute_maximum_127(distribution: Distribution, exact: Range, args: QuantizationArgs) -> Range:
    """The convention of arXiv 2605.15572, scale = amax / 127: a range wider by 127.5 / 127, so that amax is a code."""
    return exact[0] * 127.5 / 127, exact[1] * 127.5 / 127


def percentile(level: float) -> Callable[[Distribution, Range, QuantizationArgs], Range]:
    """Clip at the quantile of |x| (`inverted_cdf`)."""

    def observe(distribution: Distribution, exact: Range, args: QuantizationArgs) -> Range:
        (limit,) = quantiles(distribution, [level])
        return max(exact[0], -limit), min(exact[1], limit)

    return observe


def mse(distribution: Distribution, exact: Range, args: QuantizationArgs) -> Range:
    """The range, shrunk about zero, with the least Σ(x − x̂)²: a coarse search to 1/1000, then a fine one around it.

    In float32, over the distribution; `exact` bounds it.
    """
    values, counts = finite(distribution)
    x = torch.from_numpy(values.clip(*exact))
    weights = torch.from_numpy(counts.astype(np.float64))
    coarse = torch.logspace(0, -3, 61, dtype=torch.float32)
    best = int(_squared_errors(x, weights, exact, coarse, args).argmin())
    low, high = coarse[min(best + 1, 60)], coarse[max(best - 1, 0)]
    fine = torch.linspace(float(high), float(low), 21, dtype=torch.float32)
    shrink = float(fine[int(_squared_errors(x, weights, exact, fine, args).argmin())])
    return exact[0] * shrink, exact[1] * shrink


OBSERVERS: dict[str, Callable[[Distribution, Range, QuantizationArgs], Range]] = {
    "absolute_maximum": absolute_maximum,
    "absolute_maximum_127": absolute_maximum_127,
    "percentile_99.9": percentile(0.999),
    "percentile_99.99": percentile(0.9999),
    "mse": mse,
}


def find_observer(name: str) -> str:
    """Check an observer's name. Raises UsageError."""
    if name not in OBSERVERS:
        raise UsageError("unknown observer", where=f"--observer {name}", hint=f"one of {', '.join(OBSERVERS)}")
    return name


def applies(observer: str, args: QuantizationArgs) -> bool:
    """Whether an observer has a meaning for a format: amax/127 is a convention of symmetric INT8 alone."""
    return observer != "absolute_maximum_127" or (args.symmetric and args.type == QuantizationType.INT)


def derive(
    distribution: Distribution, exact: Range, args: QuantizationArgs, observer: str, dtype: torch.dtype
) -> QParams | None:
    """Quantization parameters of one tensor.

    exact: its true minimum and maximum. dtype: the checkpoint's, in which the toolkit computes and stores scales.
    None where the range is not finite, which no grid can span.
    """
    if not all(np.isfinite(exact)):
        return None
    low, high = OBSERVERS[observer](distribution, exact, args)
    scale, zero_point = calculate_qparams(torch.tensor([low], dtype=dtype), torch.tensor([high], dtype=dtype), args)
    return QParams(min=low, max=high, scale=scale, zero_point=zero_point)


def _squared_errors(x: Tensor, weights: Tensor, exact: Range, shrinks: Tensor, args: QuantizationArgs) -> Tensor:
    """Σ weights·(x − x̂)² for each candidate range: float64 [candidates]."""
    scale, zero_point = calculate_qparams(exact[0] * shrinks[:, None], exact[1] * shrinks[:, None], args)
    rows = x.expand(len(shrinks), -1)
    error: Tensor = rows - fake_quantize(rows, scale, zero_point, args)
    return error.double().square() @ weights
