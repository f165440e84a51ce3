"""What an artifact holds, whichever toolkit wrote it. Magnitudes are in the units of the tensor that is quantized."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """The static range that a Linear's input is quantized over: the grid's ends, low ≤ x ≤ high; the rest is clipped.

    scale, zero_point: as stored. epsilons: values that the toolkit writes where it saw nothing, such as the eps of
    the scale's dtype. tensor: the name under which the file holds it. factors: float64 [channels], what the artifact
    multiplies each channel by before it quantizes (SmoothQuant); low and high are then ends of the product.
    """

    module: str
    tensor: str
    scale: float
    zero_point: float
    low: float
    high: float
    epsilons: tuple[float, ...]
    factors: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherScale:
    """Any other scale: of a weight, an output, a cache.

    values: float64, flat. idle: bool, the same shape: entries whose quantized values are all zero, so that they scale
    nothing and may hold anything.
    """

    module: str
    tensor: str
    values: NDArray[np.float64]
    idle: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A tensor that the artifact's own configuration calls for, and that is not there."""

    module: str
    tensor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A quantized model on disk. weights: module → [out, in], empty where the format packs them without telling.

    dynamic: Linears whose input is quantized with scales that are computed as the model runs.
    """

    kind: str
    path: str
    weights: dict[str, tuple[int, ...]]
    inputs: list[InputRange]
    others: list[OtherScale] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    dynamic: list[str] = field(default_factory=list)
