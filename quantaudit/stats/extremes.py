"""Signed minimum and maximum of every sample: what moving-average observers and subsampling are replayed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """One entry a sample, ascending by sample.

    sample, tokens: int32 [n]; min, max: float32 [n], exact, NaN where the sample held a NaN.
    """

    sample: NDArray[np.int32]
    tokens: NDArray[np.int32]
    min: NDArray[np.float32]
    max: NDArray[np.float32]


def zero() -> Extremes:
    """The identity of `merge`."""
    return Extremes(
        sample=np.empty(0, np.int32),
        tokens=np.empty(0, np.int32),
        min=np.empty(0, np.float32),
        max=np.empty(0, np.float32),
    )


def merge(a: Extremes, b: Extremes) -> Extremes:
    """Extremes over both: associative, commutative, `zero` is its identity."""
    return from_arrays(
        np.concatenate([a.sample, b.sample]),
        np.concatenate([a.tokens, b.tokens]),
        np.concatenate([a.min, b.min]),
        np.concatenate([a.max, b.max]),
    )


def from_arrays(
    sample: NDArray[np.int32], tokens: NDArray[np.int32], low: NDArray[np.float32], high: NDArray[np.float32]
) -> Extremes:
    """From one entry a part of a sample, in any order, each array [n]; a sample met twice is combined."""
    unique, inverse = np.unique(sample, return_inverse=True)
    total = np.zeros(len(unique), np.int32)
    lowest = np.full(len(unique), np.inf, np.float32)
    highest = np.full(len(unique), -np.inf, np.float32)
    np.add.at(total, inverse, tokens)
    with np.errstate(invalid="ignore"):  # a NaN is passed on, as promised, and not worth a warning
        np.minimum.at(lowest, inverse, low)
        np.maximum.at(highest, inverse, high)
    return Extremes(sample=unique, tokens=total, min=lowest, max=highest)
