"""Tensors that quantization treats very differently, and the parameters they get."""

from __future__ import annotations

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

from quantaudit.quant.observers import Observed, QParams, Range, qparams_from
from tests.builders import distribution_of

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def _heavy() -> Tensor:
    x = torch.randn(2, 30000, generator=_generator())
    return (x[0] / x[1].abs().clamp_min(1e-2)).clamp(-700, 700)


TENSORS = {
    "gaussian": lambda: torch.randn(6000, generator=_generator()) * 2 + 0.3,
    "tails": _heavy,
    "massive outlier": lambda: torch.cat([torch.randn(6000, generator=_generator()), torch.tensor([3000.0, -40.0])]),
    "one-sided": lambda: torch.rand(4000, generator=_generator()) * 5 + 1,
    "negative": lambda: -torch.rand(4000, generator=_generator()) * 5 - 1,
    "zeros": lambda: torch.zeros(50),
    "constant": lambda: torch.full((50,), 1.375),
    "sparse": lambda: torch.randn(6000, generator=_generator()).relu(),
}
SPREAD = ("gaussian", "tails", "massive outlier", "one-sided", "negative", "sparse")
"""Those with more than one value."""


def tensor(name: str, dtype: str) -> Tensor:
    return TENSORS[name]().to(DTYPES[dtype])


def extremes(x: Tensor) -> Range:
    return float(x.min()), float(x.max())


def observed(x: Tensor, batches: int = 3) -> Observed:
    """What calibration sees of a tensor that comes in so many batches."""
    parts = [part.float() for part in x.tensor_split(min(batches, len(x)))]
    return Observed(
        distribution=distribution_of(x),
        exact=extremes(x),
        lows=np.array([part.min() for part in parts], np.float32),
        highs=np.array([part.max() for part in parts], np.float32),
        dtype=x.dtype,
    )


def qparams(x: Tensor, args: QuantizationArgs, observer: str = "absolute_maximum") -> QParams:
    actual = qparams_from(observed(x), args, observer)
    assert actual is not None
    return actual
