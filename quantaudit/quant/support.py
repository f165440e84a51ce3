"""What of a scheme can be simulated, what only nearly, and what not at all: named, and never passed by in silence."""

from __future__ import annotations

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy

from quantaudit.quant.observers import LLM_COMPRESSOR_NAMES

_GROUPED = (QuantizationStrategy.GROUP, QuantizationStrategy.TENSOR_GROUP)
_WEIGHT_OBSERVERS = (
    "memoryless_minmax",
    "static_minmax",
    "minmax",
    "mse",
    "memoryless_mse",
    "nvfp4_expanded_mse",
)


def weight_obstacle(args: QuantizationArgs, shape: tuple[int, ...]) -> str | None:
    """Why a weight [out, in] of this shape cannot be quantized, as llm-compressor refuses it too; None where it can."""
    if args.strategy == QuantizationStrategy.TOKEN:
        return "weights have no tokens to scale by"
    if args.strategy in _GROUPED and shape[-1] % args.group_size:
        return f"{shape[-1]} columns do not divide into groups of {args.group_size}"
    return None


def obstacles(scheme: QuantizationScheme, shape: tuple[int, ...]) -> list[str]:
    """Why a Linear with a weight [out, in] of this shape cannot be simulated under a scheme; empty where it can."""
    reasons = []
    weights, inputs = scheme.weights, scheme.input_activations
    if weights is not None:
        if reason := weight_obstacle(weights, shape):
            reasons.append(reason)
        if weights.observer not in (None, *_WEIGHT_OBSERVERS):
            reasons.append(f"the weight observer {weights.observer} needs data that are not kept")
    if inputs is not None:
        reasons += _input_obstacles(inputs, shape[-1])
    if scheme.output_activations is not None:
        reasons.append("output activations are not measured")
    return reasons


def approximations(scheme: QuantizationScheme) -> list[str]:
    """Where a simulation is near llm-compressor's result but not the same."""
    args = scheme.input_activations
    if args is None or args.dynamic is True:
        return []
    if args.observer == "mse":
        return ["input observer mse: the least squared error over all calibration tokens stands for its moving average"]
    if args.strategy == QuantizationStrategy.TENSOR_GROUP and args.observer != "static_minmax":
        return ["global input scale: the moving average over groups is replayed for the whole tensor"]
    return []


def _input_obstacles(args: QuantizationArgs, width: int) -> list[str]:
    reasons = []
    if args.strategy in _GROUPED and width % args.group_size:
        reasons.append(f"{width} input channels do not divide into groups of {args.group_size}")
    if args.strategy == QuantizationStrategy.ATTN_HEAD:
        reasons.append("inputs of a Linear have no attention heads to scale by")
    if args.dynamic is False and args.strategy in _GROUPED:
        reasons.append("static scales for groups of input channels need ranges that are not kept")
    if args.dynamic is not True and (args.observer or "minmax") not in LLM_COMPRESSOR_NAMES:
        reasons.append(f"the input observer {args.observer} cannot be replayed from a profile")
    return reasons
