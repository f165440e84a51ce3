"""The largest magnitude of every channel: separates an outlier channel from a massive token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def zero() -> NDArray[np.float32]:
    """The identity of `merge`: nothing seen, width unknown."""
    return np.empty(0, np.float32)


def merge(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Element-wise maximum of amax: float32 [channels]. A channel that held a NaN stays NaN."""
    if not len(a) or not len(b):
        return a if len(a) else b
    if len(a) != len(b):
        raise ValueError(f"cannot merge {len(a)} channels with {len(b)}")
    return np.maximum(a, b)
