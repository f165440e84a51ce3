"""What is kept of weights so that others can be told from them: their rms, and sixteen random projections.

The projections are aᵀ W b with signs a [rows] and b [columns], the same for every model. For two weights V and W of one
shape, their differences have the mean square ‖V − W‖² (a and b are independent: E[(aᵀ X b)²] = ‖X‖²; Alon, Matias and
Szegedy 1999). So they come close for a weight and its quantized form, and not for two different weights of the same
statistics, nor for a weight and its transpose.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from quantaudit.provenance import WeightSketch

PROJECTIONS = 16
STEP = 1 / 16
"""Of a projection over ‖W‖, as it is kept: in eight bits, and of either sign up to 8."""
ROWS = 2048
"""Rows of a weight that are projected at a time."""


class Sketcher:
    """Projects a weight that comes some rows at a time. columns: length of a row."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._projected = torch.zeros(PROJECTIONS, dtype=torch.float64)
        self._squares = 0.0
        self._count = 0

    def add(self, start: int, rows: Tensor) -> None:
        """rows: [n, columns], those from number `start` on, of any float dtype. Sums are in float64."""
        values = rows.double() if rows.device.type in ("cpu", "cuda") else rows.cpu().double()
        across = _signs("columns", self.columns).to(values.device, torch.float64)
        down = _signs("rows", _room(start + len(values)))[start : start + len(values)]
        self._projected += ((values @ across) * down.to(values.device, torch.float64)).sum(0).cpu()
        self._squares += float(values.square().sum())
        self._count += values.numel()

    def sketch(self) -> WeightSketch | None:
        """Of all rows; None where a value is not finite, or there is none."""
        norm = math.sqrt(self._squares) if math.isfinite(self._squares) else math.nan
        if not self._count or math.isnan(norm):
            return None
        parts = self._projected.numpy() / norm if norm else np.zeros(PROJECTIONS)
        codes = np.clip(np.round(parts / STEP), -127, 127).astype(np.int8)
        return WeightSketch(rms=float(f"{norm / math.sqrt(self._count):.7g}"), projections=codes.tobytes().hex())


def sketch_of(weight: Tensor) -> WeightSketch | None:
    """Of a weight of any number of axes, of which the last are columns; a vector is one column. None as above."""
    matrix = weight.detach().reshape(-1, weight.shape[-1] if weight.ndim > 1 else 1)
    sketcher = Sketcher(matrix.shape[1])
    for start in range(0, len(matrix), ROWS):
        sketcher.add(start, matrix[start : start + ROWS])
    return sketcher.sketch()


def sketches(model: nn.Module, under: str = "") -> dict[str, WeightSketch]:
    """Of every parameter that has values, by its path. under: path of `model` itself, with a dot."""
    with torch.no_grad():
        found = {
            f"{under}{name}": sketch_of(parameter)
            for name, parameter in model.named_parameters()
            if not parameter.is_meta and parameter.is_floating_point()
        }
    return {name: sketch for name, sketch in sorted(found.items()) if sketch is not None}


def difference(of: WeightSketch, other: WeightSketch) -> float:
    """Estimate of ‖V − W‖ / ‖W‖, W being `of`: 0 for equal weights, √2 for unrelated ones of equal rms."""
    if not of.rms:
        return 0.0 if not other.rms else math.inf
    scaled = _parts(other) * (other.rms / of.rms)
    return math.sqrt(float(np.mean((scaled - _parts(of)) ** 2)))


def correlation(of: WeightSketch, other: WeightSketch) -> float:
    """Estimate of the cosine between two weights: 1 for multiples of each other, 0 ± 0.25 for unrelated ones."""
    first, second = _parts(of), _parts(other)
    norm = math.sqrt(float(np.sum(first**2) * np.sum(second**2)))
    return float(np.sum(first * second)) / norm if norm else 0.0


def _parts(sketch: WeightSketch) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(sketch.projections), np.int8).astype(np.float64) * STEP


def _room(size: int) -> int:
    """A size that is cached: a power of two. Drawn again for every part, signs of millions of rows took minutes."""
    return max(ROWS, 1 << (size - 1).bit_length())


@lru_cache(maxsize=32)
def _signs(axis: str, size: int) -> Tensor:
    """int8 [size, 16], ±1. Longer ones begin with shorter ones, whichever library draws numbers how."""
    bits = np.frombuffer(hashlib.shake_256(axis.encode()).digest(size * PROJECTIONS // 8), np.uint8)
    return torch.from_numpy(np.unpackbits(bits).reshape(size, PROJECTIONS).astype(np.int8) * 2 - 1)
