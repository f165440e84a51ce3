"""Observers: from a tensor's calibration distribution to a range, and from that to compressed-tensors' scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from numpy.typing import NDArray
from torch import Tensor

from quantaudit.stats.distribution import Distribution, finite, quantiles

ORDERS = 100
"""Orders of the calibration batches over which the spread of a moving average's scale is taken."""

Range = tuple[float, float]
"""(minimum, maximum) that the quantization grid spans; what lies outside is clipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QParams:
    """x ≈ (q − zero_point) · scale. scale, zero_point: [1], the scale in the model's dtype as it is saved.

    global_scale: float32 [1] of a tensor whose groups find their own scales at run time (NVFP4); they then stand for
    no grid of their own.
    """

    min: float
    max: float
    scale: Tensor
    zero_point: Tensor
    global_scale: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is known of one tensor from calibration.

    exact: its true minimum and maximum. lows, highs: float32 [samples], those of each sample in the order of the
    corpus, which is the order of calibration batches of one sample. dtype: the checkpoint's, in which
    llm-compressor's observers compute and scales are stored.
    """

    distribution: Distribution
    exact: Range
    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    dtype: torch.dtype


Observer = Callable[[Observed, QuantizationArgs], Range]


def absolute_maximum(observed: Observed, args: QuantizationArgs) -> Range:
    """The whole range: llm-compressor's `static_minmax`. INT8 symmetric gives amax / 127.5."""
    return observed.exact


def absolute_maximum_127(observed: Observed, args: QuantizationArgs) -> Range:
    """The convention of arXiv 2605.15572, scale = amax / 127: a range wider by 127.5 / 127, so that amax is a code."""
    return observed.exact[0] * 127.5 / 127, observed.exact[1] * 127.5 / 127


def minmax(observed: Observed, args: QuantizationArgs) -> Range:
    """llm-compressor's `minmax`, replayed: a moving average of each batch's extremes, seeded by the first batch.

    Batches are single samples in the order of the corpus; the average is taken in the checkpoint's dtype, as there.
    """
    low, high = _moving_average(torch.from_numpy(np.stack([observed.lows, observed.highs], 1)).to(observed.dtype), args)
    return float(low), float(high)


def order_spread(observed: Observed, args: QuantizationArgs) -> float:
    """Largest over smallest scale that llm-compressor's `minmax` gives, over ORDERS orders of the batches.

    The first is their own, the others are shuffles by NumPy's default generator, seeded with 0. The range is finite.
    """
    generator, corpus_order = np.random.default_rng(0), np.arange(len(observed.lows))
    orders = np.stack([corpus_order, *(generator.permutation(corpus_order) for _ in range(ORDERS - 1))], 1)
    batches = torch.from_numpy(np.stack([observed.lows[orders], observed.highs[orders]], 1)).to(observed.dtype)
    low, high = _moving_average(batches, args)
    scales = calculate_qparams(low[:, None], high[:, None], args)[0].double()
    return float(scales.max() / scales.min())


def _moving_average(batches: Tensor, args: QuantizationArgs) -> Tensor:
    """Of [batches, …], over the first axis, in its dtype."""
    constant = (args.observer_kwargs or {}).get("averaging_constant", 0.01)
    average = batches[0]
    for batch in batches[1:]:
        average = average * (1.0 - constant) + batch * constant if constant != 1.0 else batch
    return average


def last_batch(observed: Observed, args: QuantizationArgs) -> Range:
    """llm-compressor's `memoryless_minmax`: the extremes of the last batch alone."""
    return float(observed.lows[-1]), float(observed.highs[-1])


def percentile(level: float) -> Observer:
    """Clip at the quantile of |x| (`inverted_cdf`)."""

    def observe(observed: Observed, args: QuantizationArgs) -> Range:
        (limit,) = quantiles(observed.distribution, [level])
        return max(observed.exact[0], -limit), min(observed.exact[1], limit)

    return observe


def mse(observed: Observed, args: QuantizationArgs) -> Range:
    """The range, shrunk about zero, with the least Σ(x − x̂)²: a coarse search to 1/1000, then a fine one around it.

    In float32, over the distribution; the exact range bounds it.
    """
    values, counts = finite(observed.distribution)
    exact = observed.exact
    x = torch.from_numpy(values.clip(*exact))
    weights = torch.from_numpy(counts.astype(np.float64))
    coarse = torch.logspace(0, -3, 61, dtype=torch.float32)
    best = int(_squared_errors(x, weights, exact, coarse, args).argmin())
    low, high = coarse[min(best + 1, 60)], coarse[max(best - 1, 0)]
    fine = torch.linspace(float(high), float(low), 21, dtype=torch.float32)
    shrink = float(fine[int(_squared_errors(x, weights, exact, fine, args).argmin())])
    return exact[0] * shrink, exact[1] * shrink


OBSERVERS: dict[str, Observer] = {
    "absolute_maximum": absolute_maximum,
    "absolute_maximum_127": absolute_maximum_127,
    "minmax": minmax,
    "percentile_99.9": percentile(0.999),
    "percentile_99.99": percentile(0.9999),
    "mse": mse,
}
"""Observers whose scales and errors are derived for every tensor."""

LLM_COMPRESSOR_NAMES: dict[str, str] = {
    "static_minmax": "absolute_maximum",
    "minmax": "minmax",
    "memoryless_minmax": "last_batch",
    "mse": "mse",
}
"""Observers of llm-compressor for activations → ours; `mse` is the only one that is not the same."""

_ALL: dict[str, Observer] = {**OBSERVERS, "last_batch": last_batch}


def observer_of(args: QuantizationArgs) -> str:
    """Ours for the observer that llm-compressor would use for a static activation, `minmax` unless one is named.

    An unknown one is returned unmodified: `quant.support` names it as one that cannot be replayed.
    """
    name = args.observer or "minmax"
    return LLM_COMPRESSOR_NAMES.get(name, name)


def applies(observer: str, args: QuantizationArgs) -> bool:
    """Whether an observer has a meaning for a format: amax/127 is a convention of symmetric INT8 alone."""
    return observer != "absolute_maximum_127" or (args.symmetric and args.type == QuantizationType.INT)


def qparams_from(observed: Observed, args: QuantizationArgs, observer: str) -> QParams | None:
    """Quantization parameters of one tensor. None where the range is not finite, which no grid can span."""
    if not all(np.isfinite(observed.exact)):
        return None
    low, high = _ALL[observer](observed, args)
    return _on_grid(low, high, observed.dtype, args)


def in_dtype(qparams: QParams, dtype: torch.dtype, args: QuantizationArgs) -> QParams:
    """The same range with its scale in another dtype.

    A Linear that keeps its own, such as a float32 router in a bfloat16 model, reads tensors of that dtype, and
    llm-compressor computes and stores its scale in it.
    """
    if qparams.global_scale is not None or qparams.scale.dtype == dtype:
        return qparams
    return _on_grid(qparams.min, qparams.max, dtype, args)


def _on_grid(low: float, high: float, dtype: torch.dtype, args: QuantizationArgs) -> QParams:
    bounds = torch.tensor([low], dtype=dtype), torch.tensor([high], dtype=dtype)
    if args.strategy == QuantizationStrategy.TENSOR_GROUP:
        amax = torch.maximum(-bounds[0], bounds[1])
        whole, none = generate_gparam(-amax, amax), torch.empty(0)
        return QParams(min=low, max=high, scale=none, zero_point=none, global_scale=whole)
    scale, zero_point = calculate_qparams(*bounds, args)
    return QParams(min=low, max=high, scale=scale, zero_point=zero_point)


def _squared_errors(x: Tensor, weights: Tensor, exact: Range, shrinks: Tensor, args: QuantizationArgs) -> Tensor:
    """Σ weights·(x − x̂)² for each candidate range: float64 [candidates]."""
    scale, zero_point = calculate_qparams(exact[0] * shrinks[:, None], exact[1] * shrinks[:, None], args)
    rows = x.expand(len(shrinks), -1)
    error: Tensor = rows - fake_quantize(rows, scale, zero_point, args)
    return error.double().square() @ weights
