"""The values that a number format can hold under one static scale: how far they reach, and what becomes zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FLOATS = {8: (448.0, 2.0**-9), 4: (6.0, 0.5)}
"""Bits → largest and smallest positive number of E4M3 and E2M1, the floating-point formats of compressed-tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Magnitudes in the tensor’s units.

    largest: of the sign that reaches further. zeroed: below it a value rounds to zero. step: the smallest that can be
    held, and where steps are even, what neighbors are apart.
    """

    largest: float
    step: float
    zeroed: float
    even: bool


def grid_of(arguments: Mapping[str, Any], scale: float | None, zero_point: int = 0) -> Grid | None:
    """Of one scale for a whole tensor; None without a scale, and for formats of other widths.

    arguments: compressed-tensors' of the activations, with its defaults (INT8) for what they leave out.
    """
    bits = arguments.get("num_bits") or 8
    if not scale:
        return None
    if arguments.get("type") == "float":
        if bits not in _FLOATS:
            return None
        largest, smallest = _FLOATS[bits]
        return Grid(largest=largest * scale, step=smallest * scale, zeroed=smallest * scale / 2, even=False)
    half = 2 ** (bits - 1)
    largest = max(half - 1 - zero_point, half + zero_point)
    return Grid(largest=largest * scale, step=scale, zeroed=scale / 2, even=True)
