"""Statistics' inputs written out by hand: labels of whole samples, and extremes as rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantaudit.stats.extremes import Extremes, from_arrays
from quantaudit.stats.labels import Labels


def from_rows(rows: list[tuple[int, int, float, float]]) -> Extremes:
    """From (sample, tokens, min, max) in any order; a sample met twice is combined."""
    sample, tokens, low, high = ([row[i] for row in rows] for i in range(4))
    return from_arrays(
        np.asarray(sample, np.int32),
        np.asarray(tokens, np.int32),
        np.asarray(low, np.float32),
        np.asarray(high, np.float32),
    )


def labels_of(segments: Sequence[tuple[int, int, NDArray[np.int64]]]) -> Labels:
    """Rows of whole samples one after another: (index, split, token ids) of each."""
    lengths = [len(ids) for _, _, ids in segments]
    return Labels(
        segment=np.repeat(np.arange(len(segments)), lengths),
        position=np.concatenate([np.arange(n) for n in lengths]),
        token=np.concatenate([ids for _, _, ids in segments]).astype(np.int64),
        sample=np.array([index for index, _, _ in segments], np.int64),
        split=np.array([split for _, split, _ in segments], np.int64),
    )
