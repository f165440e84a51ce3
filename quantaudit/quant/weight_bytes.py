"""Bytes that a Linear's weight takes in a checkpoint, by the layouts that compressed-tensors writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_PER_GROUP = {"group", "tensor_group"}
_USUAL_SCALE_BYTES = 2
"""Scales are saved in the model's 16 bits unless a scheme names a dtype of their own, which has a byte."""
_GLOBAL_SCALE_BYTES = 4


def weight_bytes(shape: Sequence[int], weights: Mapping[str, Any], *, activations: bool) -> int:
    """Of codes, scales and zero points of a weight [out, in].

    weights: arguments as a simulation's SchemeInfo has them; what is absent is compressed_tensors' own default.
    activations: whether inputs are quantized too. Integers of less than 8 bits are packed into words of 32 where
    weights alone are quantized, and take a byte each otherwise; FP4 takes half a byte.
    """
    rows, columns = math.prod(shape[:-1]), shape[-1]
    bits, kind, strategy = int(weights.get("num_bits", 8)), weights.get("type", "int"), weights.get("strategy")
    packed = kind == "int" and bits < 8 and not activations
    if packed:
        codes = 4 * rows * math.ceil(columns * bits / 32)
    else:
        codes = rows * math.ceil(columns * (4 if kind == "float" and bits == 4 else 8) / 8)
    scales = _scales(rows, columns, strategy, weights.get("group_size") or columns, weights.get("block_structure"))
    total = codes + scales * (1 if weights.get("scale_dtype") else _USUAL_SCALE_BYTES)
    if strategy == "tensor_group":
        total += _GLOBAL_SCALE_BYTES
    if not weights.get("symmetric", True):
        total += 4 * (scales // rows) * math.ceil(rows * bits / 32) if packed else scales
    return total


def takes_whole_bytes(weights: Mapping[str, Any], *, activations: bool) -> bool:
    """Whether codes of fewer than 8 bits take a byte each, as those of integers do where inputs are quantized."""
    bits, kind = int(weights.get("num_bits", 8)), weights.get("type", "int")
    return bits < 8 and (kind, bits) != ("float", 4) and (activations or kind != "int")


def _scales(rows: int, columns: int, strategy: str | None, group: int, block: Sequence[int] | None) -> int:
    if strategy in _PER_GROUP:
        return rows * math.ceil(columns / group)
    if strategy == "block" and block:
        return math.ceil(rows / block[0]) * math.ceil(columns / block[1])
    return rows if strategy == "channel" else 1
