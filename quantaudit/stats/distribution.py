"""The exact distribution of a 16-bit tensor: how often each of its 65,536 bit patterns occurred.

Every per-tensor question (a quantile, a threshold, a bit width, an error) is answered from these counts without the
model. bfloat16 and float16 tensors are counted unmodified; wider ones after rounding to bfloat16, which moves a value
by at most 2⁻⁸ of itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Encoding = Literal["bfloat16", "float16"]
BINS = 1 << 16
MASSIVE_FLOOR = 100.0
MASSIVE_RATIO = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Sparse histogram over bit patterns. patterns: uint16 [n], ascending; counts: int64 [n], all positive."""

    encoding: Encoding
    patterns: NDArray[np.uint16]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Moments and quantiles of the finite values, in the tensor's units; NaN where there is no finite value."""

    values: int
    nan: int
    inf: int
    min: float
    max: float
    amax: float
    mean: float
    rms: float
    median: float
    p99: float
    p999: float
    p9999: float


def zero(encoding: Encoding) -> Distribution:
    """The identity of `merge`."""
    return Distribution(encoding=encoding, patterns=np.empty(0, np.uint16), counts=np.empty(0, np.int64))


def from_dense(encoding: Encoding, counts: NDArray[np.int64]) -> Distribution:
    """From counts: int64 [65,536], indexed by bit pattern."""
    patterns = np.flatnonzero(counts)
    return Distribution(encoding=encoding, patterns=patterns.astype(np.uint16), counts=counts[patterns])


def merge(a: Distribution, b: Distribution) -> Distribution:
    """The distribution of both tensors together: associative, commutative, `zero` is its identity."""
    if a.encoding != b.encoding:
        raise ValueError(f"cannot merge {a.encoding} counts with {b.encoding} counts")
    patterns, inverse = np.unique(np.concatenate([a.patterns, b.patterns]), return_inverse=True)
    counts = np.zeros(len(patterns), np.int64)
    np.add.at(counts, inverse, np.concatenate([a.counts, b.counts]))
    return Distribution(encoding=a.encoding, patterns=patterns, counts=counts)


def decode(encoding: Encoding, patterns: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of bit patterns, exactly: float32 of the same shape."""
    if encoding == "float16":
        return patterns.view(np.float16).astype(np.float32)
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def finite(distribution: Distribution) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ascending finite values, float32 [n], and their counts, int64 [n]. −0 and +0 stay two entries."""
    values = decode(distribution.encoding, distribution.patterns)
    kept = np.isfinite(values)
    order = np.argsort(values[kept], kind="stable")
    return values[kept][order], distribution.counts[kept][order]


def magnitudes(distribution: Distribution) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ascending finite |x|, float32 [n], and their counts, int64 [n]."""
    values, counts = finite(distribution)
    absolute = np.abs(values)
    order = np.argsort(absolute, kind="stable")
    return absolute[order], counts[order]


def quantiles(distribution: Distribution, levels: list[float]) -> list[float]:
    """Quantiles of finite |x| by NumPy's `inverted_cdf`: always a value that occurred. NaN for an empty tensor."""
    absolute, counts = magnitudes(distribution)
    if not len(absolute):
        return [float("nan")] * len(levels)
    cumulative = np.cumsum(counts)
    ranks = np.maximum(np.ceil(cumulative[-1] * np.asarray(levels) - 1), 0)
    return [float(absolute[i]) for i in np.searchsorted(cumulative, ranks, side="right")]


def interpolated_quantiles(distribution: Distribution, levels: list[float]) -> list[float]:
    """Quantiles of finite |x|, linear between neighbours, the default of NumPy and PyTorch; NaN for an empty tensor."""
    absolute, counts = magnitudes(distribution)
    if not len(absolute):
        return [float("nan")] * len(levels)
    cumulative = np.cumsum(counts)
    place = (cumulative[-1] - 1) * np.asarray(levels)
    low, high = (
        absolute[np.searchsorted(cumulative, rank, side="right")].astype(np.float64)
        for rank in (np.floor(place), np.ceil(place))
    )
    return [float(value) for value in low + (high - low) * (place - np.floor(place))]


def massive_threshold(median: float) -> float:
    """Magnitude above which an activation is massive: 100 and 1,000 medians (Sun et al. 2024, arXiv 2402.17762).

    median: of |x| over the token's own channels; that of a whole tensor where tokens cannot be separated.
    """
    return max(MASSIVE_FLOOR, MASSIVE_RATIO * median)


def summary(distribution: Distribution) -> Summary:
    """All descriptive numbers of a card's row, from the counts alone; sums in float64."""
    decoded = decode(distribution.encoding, distribution.patterns)
    values, counts = finite(distribution)
    median, p99, p999, p9999 = quantiles(distribution, [0.5, 0.99, 0.999, 0.9999])
    total = int(counts.sum())
    wide = values.astype(np.float64)
    return Summary(
        values=int(distribution.counts.sum()),
        nan=int(distribution.counts[np.isnan(decoded)].sum()),
        inf=int(distribution.counts[np.isinf(decoded)].sum()),
        min=float(values[0]) if total else float("nan"),
        max=float(values[-1]) if total else float("nan"),
        amax=float(np.abs(values).max()) if total else float("nan"),
        mean=float(wide @ counts / total) if total else float("nan"),
        rms=float(np.sqrt(wide**2 @ counts / total)) if total else float("nan"),
        median=median,
        p99=p99,
        p999=p999,
        p9999=p9999,
    )
