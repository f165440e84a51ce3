"""Fake quantization of activations as in compressed-tensors, to the same bit and several times as fast on a CPU.

compressed_tensors clamps with bounds that are tensors, which takes most of its time on a CPU. Handed to its own
arithmetic as numbers, the same bounds cost nothing; a 16-bit tensor under one static scale has no more than 65,536
values to quantize, whatever its size; the largest 16-bit magnitude of a token has no more scales than that; and FP4
rounds in two additions.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.lifecycle.forward_helpers import _quantize_dequantize
from compressed_tensors.quantization.utils import calculate_qparams, calculate_range, compute_dynamic_scales_and_zp
from torch import Tensor

_BROADCAST = (QuantizationStrategy.TENSOR, QuantizationStrategy.TOKEN, QuantizationStrategy.CHANNEL)
_GROUPED = (QuantizationStrategy.GROUP, QuantizationStrategy.TENSOR_GROUP)
_FP4_MAX = 6.0
_EXPONENT, _ONE = 0x7F800000, 0x3F800000
"""Bits of a float32's exponent, and 1.0."""
_SPACED_BY_HALF = 1.5 * 2.0**22
"""Float32 numbers around it are ½ apart: added to x and taken off again, it rounds x to halves, ties to even."""


def fake_quantize_rows(
    x: Tensor, scale: Tensor, zero_point: Tensor, args: QuantizationArgs, global_scale: Tensor | None = None
) -> Tensor:
    """`fake_quantize`, fast for scales that broadcast against x (of tensors, tokens and a weight's rows), and for FP4.

    Others are quantized by compressed-tensors. global_scale: float32 [1], of NVFP4.
    """
    if args.strategy in _GROUPED and args.type == QuantizationType.FLOAT and args.num_bits == 4 and _on_processor(x):
        return _fake_quantize_fp4(x, scale, args, global_scale)
    if args.strategy not in _BROADCAST:
        return fake_quantize(x, scale, zero_point, args, global_scale=global_scale)  # type: ignore[no-any-return]
    low, high = _bounds(args.num_bits, args.type)
    # A symmetric zero point is 0, and adding it changes nothing.
    point = None if args.symmetric else zero_point
    restored: Tensor = _quantize_dequantize(x, scale, point, low, high, args)
    return restored


def _on_processor(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _fake_quantize_fp4(x: Tensor, scale: Tensor, args: QuantizationArgs, global_scale: Tensor | None) -> Tensor:
    """x [..., in] under scales [..., in / group size]; FP4 has no zero points."""
    by_group = (scale if global_scale is None else scale / global_scale).unsqueeze(-1)
    rounded = round_to_fp4((x.unflatten(-1, (-1, args.group_size)) / by_group).float())
    return rounded.to(by_group.dtype).mul_(by_group).flatten(-2).to(x.dtype)


def round_to_fp4(x: Tensor) -> Tensor:
    """The nearest of 0, ½, 1, 1½, 2, 3, 4, 6 with the sign of x, ties to the even code, in x itself (float32).

    compressed_tensors masks one interval after the other. Codes are ½ apart up to 2, 1 up to 4, 2 up to 6: half the
    power of two below |x|, from 1 on. Around 1.5 · 2²² times that power float32 numbers are so far apart.
    """
    x.clamp_(-_FP4_MAX, _FP4_MAX)
    power = x.view(torch.int32).bitwise_and(_EXPONENT).clamp_(min=_ONE).view(torch.float32)
    return x.add_(power.mul_(_SPACED_BY_HALF)).sub_(power)


def dynamic_scales(x: Tensor, args: QuantizationArgs, global_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`compute_dynamic_scales_and_zp` of x [..., tokens, channels].

    For symmetric scales of tokens only the largest magnitude counts, which one pass in float32 finds fastest.
    """
    if args.strategy == QuantizationStrategy.TOKEN and args.symmetric:
        amax = x.to(torch.float32, copy=True).abs_().amax(-1, keepdim=True).to(x.dtype)
        short = amax.element_size() == 2
        scales: tuple[Tensor, Tensor] = _scales(amax, args) if short else calculate_qparams(-amax, amax, args)
    else:
        scales = compute_dynamic_scales_and_zp(x, args, module=None, global_scale=global_scale)
    return scales


def _scales(amax: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """`calculate_qparams` of a symmetric range, looked up by the bit pattern of its 16-bit end."""
    key = (args.num_bits, args.type, args.scale_dtype, args.zp_dtype, args.group_size, amax.dtype, amax.device)
    if key not in _SCALES:
        ends = _patterns(amax.dtype, amax.device)
        _SCALES[key] = calculate_qparams(-ends, ends, args)
    scales, zero_points = _SCALES[key]
    index = amax.view(torch.uint16).view(-1).to(torch.int32)
    return scales.index_select(0, index).view(amax.shape), zero_points[:1].expand(amax.shape)


_SCALES: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}


@cache
def _bounds(num_bits: int, kind: QuantizationType) -> tuple[float, float]:
    low, high = calculate_range(QuantizationArgs(num_bits=num_bits, type=kind), torch.device("cpu"))
    return float(low), float(high)


def _patterns(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every value of a 16-bit dtype, by its bit pattern."""
    return torch.arange(1 << 16, dtype=torch.int32, device=device).to(torch.int16).view(dtype)


class StaticTable:
    """x → x̂ of a 16-bit tensor under one static scale, looked up by its bit pattern: 128 KiB."""

    def __init__(self, scale: Tensor, zero_point: Tensor, args: QuantizationArgs, dtype: torch.dtype) -> None:
        self._table = fake_quantize_rows(_patterns(dtype, scale.device), scale, zero_point, args)

    def __call__(self, x: Tensor) -> Tensor:
        patterns = x.contiguous().view(torch.uint16).view(-1).to(torch.int32)
        restored: Tensor = self._table.index_select(0, patterns).view(x.shape)
        return restored
