"""Fake quantization of activations as in compressed-tensors, to the same bit and several times as fast on a CPU.

compressed_tensors clamps with bounds that are tensors, which takes most of its time on a CPU. Handed to its own
arithmetic as numbers, the same bounds cost nothing; a 16-bit tensor under one static scale has no more than 65,536
values to quantize, whatever its size; the largest 16-bit magnitude of a token has no more scales than that; and small
floating-point formats round in two additions.
"""

from __future__ import annotations

from dataclasses import dataclass
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
_EXPONENT = 0x7F800000
"""Bits of a float32's exponent."""
_SPACED_BY_ONE = 1.5 * 2.0**23
"""Float32 numbers around it are 1 apart: added to x and taken off again, it rounds x to integers, ties to even."""


@dataclass(frozen=True, slots=True)
class SmallFloat:
    """A format of few bits. mantissa: its bits without the leading one; lowest: exponent of its least normal number."""

    mantissa: int
    lowest: int
    largest: float


FP4_E2M1 = SmallFloat(mantissa=1, lowest=0, largest=6.0)
FP8_E4M3 = SmallFloat(mantissa=3, lowest=-6, largest=448.0)


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
    if args.type == QuantizationType.FLOAT and args.num_bits == 8 and args.symmetric and _on_processor(x):
        return round_to_float((x / scale).float(), FP8_E4M3).to(scale.dtype).mul_(scale)
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
    groups = x.reshape(*x.shape[:-1], -1, args.group_size)
    rounded = round_to_float((groups / by_group).float(), FP4_E2M1)
    return rounded.to(by_group.dtype).mul_(by_group).flatten(-2).to(x.dtype)


def round_to_float(x: Tensor, kind: SmallFloat) -> Tensor:
    """x (float32) to the nearest number of a format, beyond its largest to that, ties to even, in x itself.

    compressed_tensors masks one interval of FP4 after the other, and converts FP8 there and back. Numbers of a format
    are 2^(e − mantissa) apart, e being the exponent of |x| or the lowest: so are float32 numbers around
    1.5 · 2^(23 + e − mantissa).
    """
    x.clamp_(-kind.largest, kind.largest)
    least = (127 + kind.lowest) << 23
    power = x.view(torch.int32).bitwise_and(_EXPONENT).clamp_(min=least).view(torch.float32)
    return x.add_(power.mul_(_SPACED_BY_ONE / 2**kind.mantissa)).sub_(power)


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
