"""Fake quantization of weights, with the ranges and scales that llm-compressor finds for every strategy."""

from __future__ import annotations

from collections.abc import Sequence

from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.utils import (
    calculate_qparams,
    generate_gparam,
    maybe_pad_tensor_for_block_quant,
)
from torch import Tensor, nn

from quantaudit.errors import MeasurementError
from quantaudit.quant.lookup import fake_quantize_rows
from quantaudit.quant.schemes import global_scaled
from quantaudit.quant.support import weight_obstacle

SHARED = (
    ("gate_proj", "up_proj"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("w1", "w3"),
)
"""Siblings that llm-compressor gives one global scale (`FUSED_LAYER_NAMES`); a test holds that it still does."""

_BY_SEARCH = {"mse": "memoryless_mse", "memoryless_mse": "memoryless_mse"}
"""Weight observers that search for a range → the one that llm-compressor really uses; the others take the extremes."""


def quantize_weight(weight: Tensor, args: QuantizationArgs) -> Tensor:
    """Fake-quantized copy of a weight [out, in], in its own dtype. Raises MeasurementError where it does not fit."""
    return quantize_weights([weight], args)[0]


def quantize_weights(weights: Sequence[Tensor], args: QuantizationArgs) -> list[Tensor]:
    """Fake-quantized copies of weights [out, in] that share one global scale, where the scheme has one.

    Raises MeasurementError where a weight does not divide into the scheme's groups.
    """
    for weight in weights:
        if reason := weight_obstacle(args, tuple(weight.shape)):
            raise MeasurementError(reason, hint="leave this module out of the recipe, or choose another group size")
    ranges = [weight_range(weight, args) for weight in weights]
    shared = None
    if global_scaled(args):
        highest = max(max(high.amax(), -low.amin()) for low, high in ranges).reshape(1)
        shared = generate_gparam(-highest, highest)
    return [_restored(weight, *bounds, args, shared) for weight, bounds in zip(weights, ranges, strict=True)]


def _restored(weight: Tensor, low: Tensor, high: Tensor, args: QuantizationArgs, shared: Tensor | None) -> Tensor:
    """Quantized under the scales of these ranges, and dequantized."""
    scale, zero_point = calculate_qparams(low, high, args, shared)
    return fake_quantize_rows(weight, scale, zero_point, args, shared)


def quantize_linear(linear: nn.Module, args: QuantizationArgs | None, factor: Tensor | None = None) -> Tensor:
    """Fake-quantized copy of a Linear's weight, in its own layout: transformers' Conv1D keeps [in, out].

    args: None for smoothing alone. factor: [in], what columns are multiplied by first, as smoothing has it.
    """
    weight = weight_out_in(linear)
    if factor is not None:
        weight = (weight * factor).to(weight.dtype)
    return _as_laid(linear, weight if args is None else quantize_weight(weight, args))


def quantize_linears(linears: Sequence[nn.Module], args: QuantizationArgs) -> list[Tensor]:
    """`quantize_weights` of Linears, each in its own layout."""
    quantized = quantize_weights([weight_out_in(linear) for linear in linears], args)
    return [_as_laid(linear, new) for linear, new in zip(linears, quantized, strict=True)]


def weight_out_in(linear: nn.Module) -> Tensor:
    """A Linear's weight as [out, in]: a transposed copy of a Conv1D's, which transformers keeps as [in, out]."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    return weight if isinstance(linear, nn.Linear) else weight.T.contiguous()


def _as_laid(linear: nn.Module, weight: Tensor) -> Tensor:
    return weight if isinstance(linear, nn.Linear) else weight.T.contiguous()


def scale_group(path: str, others: Sequence[str]) -> list[str]:
    """`path` and those of `others` that share its global scale: its siblings in a fused projection, in one order."""
    parent, _, leaf = path.rpartition(".")
    names = next((group for group in SHARED if leaf in group), (leaf,))
    siblings = [f"{parent}.{name}" if parent else name for name in names]
    return [name for name in siblings if name == path or name in others]


def row_by_row(args: QuantizationArgs) -> bool:
    """Whether what becomes of a row of a weight [out, in] depends on that row alone."""
    alone = args.strategy in (QuantizationStrategy.CHANNEL, QuantizationStrategy.GROUP)
    return alone and not _searches(args) and not global_scaled(args)


def _searches(args: QuantizationArgs) -> bool:
    return args.observer in _BY_SEARCH or (args.observer or "").startswith("nvfp4")


def weight_range(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """(minimum, maximum) for each scale of a weight [out, in], in the shape of the scales."""
    if _searches(args):
        return _searched(weight, args)
    match args.strategy:
        case QuantizationStrategy.TENSOR:
            return weight.amin().reshape(1), weight.amax().reshape(1)
        case QuantizationStrategy.CHANNEL:
            return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        case QuantizationStrategy.GROUP | QuantizationStrategy.TENSOR_GROUP:
            groups = weight.reshape(len(weight), -1, args.group_size)
            return groups.amin(-1), groups.amax(-1)
        case QuantizationStrategy.BLOCK:
            height, width = args.block_structure
            padded = maybe_pad_tensor_for_block_quant(weight, args.block_structure)
            blocks = padded.reshape(len(padded) // height, height, -1, width)
            return blocks.amin((1, 3)), blocks.amax((1, 3))
    raise ValueError(f"strategy {args.strategy} does not quantize weights")


def _searched(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    # Imported where it is needed: llm-compressor takes a second to load, and few recipes ask for a search.
    from llmcompressor.observers import Observer

    name = _BY_SEARCH.get(args.observer, args.observer)
    observer = Observer.load_from_registry(name, base_name="weight", args=args.model_copy(deep=True))
    observer(weight)
    return observer.min_vals, observer.max_vals
