"""Whether vLLM 0.33 has a kernel for a scheme, as it chooses one from what is stored.

Follows `CompressedTensorsConfig._get_scheme_from_parts` for Linears and `CompressedTensorsMoEMethod.get_moe_method` for
routed experts, without regard to the device: a scheme that some device runs is taken to be run.
"""

from __future__ import annotations

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from quantaudit.gate.scheme_summary import text

PACKED_BITS = frozenset(range(2, 9))
"""Bits of packed integer weights that are read, with zero points or without."""
_ACTIVATION_FORMATS = frozenset({"naive-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized"})
_PACKED = "pack-quantized"


def has_kernel(scheme: QuantizationScheme, stored: str, *, experts: bool) -> bool:
    """Whether the engine runs a scheme with weights. stored: name of the format that it is saved in."""
    weights, inputs = scheme.weights, scheme.input_activations
    if weights is None:
        return False
    if experts:
        return _runs_experts(weights, inputs, stored)
    return (
        _runs_four_bit_floats(weights, inputs)
        or _is_mxfp8(weights)
        or _is_w4a8_fp8(weights, inputs)
        or _is_integer_fake_quantized(scheme, stored)
        or _is_packed_with_dynamic_inputs(weights, inputs, stored)
        or _is_packed_alone(weights, inputs, stored)
        or (stored in _ACTIVATION_FORMATS and _runs_eight_bits(weights, inputs))
    )


def _runs_experts(weights: QuantizationArgs, inputs: QuantizationArgs | None, stored: str) -> bool:
    return (
        _runs_four_bit_floats(weights, inputs)
        or _is_mxfp8(weights)
        or _is_packed_alone(weights, inputs, stored)
        or _is_fp8(weights, inputs)
        or _is_dynamic_w8a8(weights, inputs)
        or _is_w4a8_fp8(weights, inputs)
        or _is_dynamic_w4a8(weights, inputs)
    )


def _runs_four_bit_floats(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    return (_is_nvfp4(weights) and (inputs is None or _is_nvfp4(inputs))) or _is_mxfp4(weights)


def _runs_eight_bits(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    return (
        _is_fp8(weights, inputs)
        or _is_fp8_weight(weights)
        or _is_static_w8a8(weights, inputs)
        or _is_dynamic_w8a8(weights, inputs)
        or _is_dynamic_w4a8(weights, inputs)
    )


def _is_nvfp4(args: QuantizationArgs) -> bool:
    return _is(args, "float", 4, "tensor_group") and args.group_size == 16 and args.symmetric


def _is_mxfp4(args: QuantizationArgs) -> bool:
    return _is(args, "float", 4, "group") and args.group_size == 32 and args.symmetric


def _is_mxfp8(args: QuantizationArgs) -> bool:
    fits = _is(args, "float", 8, "group") and args.group_size == 32 and args.symmetric
    return fits and str(args.scale_dtype) == "torch.uint8"


def _is_w4a8_fp8(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    return (
        _is(weights, "int", 4, "group")
        and weights.symmetric
        and inputs is not None
        and _is(inputs, "float", 8, "token")
        and inputs.symmetric
        and _dynamic(inputs)
    )


def _is_integer_fake_quantized(scheme: QuantizationScheme, stored: str) -> bool:
    weights, parts = scheme.weights, (scheme.input_activations, scheme.output_activations)
    static = all(args is not None and _is(args, "int", 8, "tensor") and not _dynamic(args) for args in parts)
    return static and weights is not None and _is_integer_rows(weights) and stored in (_PACKED, "int-quantized")


def _is_packed_with_dynamic_inputs(weights: QuantizationArgs, inputs: QuantizationArgs | None, stored: str) -> bool:
    return (
        stored == _PACKED
        and _is_integer_rows(weights)
        and inputs is not None
        and text(inputs.type) == "int"
        and inputs.num_bits in (4, 8)
        and inputs.symmetric
        and _dynamic(inputs)
        and text(inputs.strategy) in ("token", "group")
    )


def _is_packed_alone(weights: QuantizationArgs, inputs: QuantizationArgs | None, stored: str) -> bool:
    rows = text(weights.strategy) in ("channel", "group")
    return stored == _PACKED and inputs is None and rows and weights.num_bits in PACKED_BITS


def _is_integer_rows(weights: QuantizationArgs) -> bool:
    return text(weights.type) == "int" and text(weights.strategy) in ("channel", "group")


def _is_fp8_weight(weights: QuantizationArgs) -> bool:
    return (
        text(weights.type) == "float" and weights.symmetric and text(weights.strategy) in ("tensor", "channel", "block")
    )


def _is_fp8(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    if inputs is None or not _is_fp8_weight(weights) or text(inputs.type) != "float":
        return False
    return _dynamic(inputs) or (inputs.symmetric and text(inputs.strategy) == "tensor")


def _is_static_w8a8(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    return _is_w8a8(weights, inputs) and inputs is not None and _static_tensor(inputs)


def _is_dynamic_w8a8(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    return _is_w8a8(weights, inputs) and inputs is not None and _dynamic(inputs) and text(inputs.strategy) == "token"


def _is_dynamic_w4a8(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    return (
        text(weights.type) == "int"
        and weights.num_bits == 4
        and weights.symmetric
        and text(weights.strategy) in ("group", "channel")
        and inputs is not None
        and _is(inputs, "int", 8, "token")
        and _dynamic(inputs)
    )


def _is_w8a8(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    return (
        inputs is not None
        and weights.num_bits == inputs.num_bits == 8
        and text(weights.strategy) in ("tensor", "channel")
        and weights.symmetric
    )


def _static_tensor(inputs: QuantizationArgs) -> bool:
    return text(inputs.strategy) == "tensor" and not _dynamic(inputs)


def _is(args: QuantizationArgs, kind: str, bits: int, strategy: str) -> bool:
    return text(args.type) == kind and args.num_bits == bits and text(args.strategy) == strategy


def _dynamic(args: QuantizationArgs) -> bool:
    return bool(args.dynamic)
