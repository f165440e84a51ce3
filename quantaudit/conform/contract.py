"""What tensors a scheme in a format calls for: asked of compressed-tensors itself, on tensors without storage.

A module of the given shape is initialized for quantization and compressed as saving does it, on the meta device. What
comes out has the names, shapes and dtypes that a checkpoint must hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.compressors.pack_quantized.base import PACK_ZP_STRATS
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.initialize import initialize_qparams
from torch import Tensor, nn

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})
"""Dtypes between which engines convert as they load."""
GROUP_INDEX = "weight_g_idx"
"""Of each input channel the number of its group: what GPTQ with `actorder: group` saved until it was removed."""
GROUPED = ("group", "tensor_group")
FORMATS = (
    CompressionFormat.int_quantized,
    CompressionFormat.float_quantized,
    CompressionFormat.naive_quantized,
    CompressionFormat.pack_quantized,
    CompressionFormat.nvfp4_pack_quantized,
    CompressionFormat.mxfp4_pack_quantized,
    CompressionFormat.mxfp8_quantized,
    CompressionFormat.dense,
)
"""Formats that a module can be stored in; the others are of whole models, sparse, or no longer written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Shape and admissible dtypes of one tensor; the first dtype is what compressed-tensors writes."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]

    def has_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is one of the form; a single value may have any number of axes."""
        return shape == self.shape or (math.prod(shape) == math.prod(self.shape) == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensor:
    """One tensor that a checkpoint must hold. name: in the files; module: on the card; leaf: such as `weight_scale`.

    form: None where only the name is known. quantized: whether a scheme calls for it.
    """

    name: str
    module: str
    leaf: str
    form: Form | None
    quantized: bool


def linear_forms(
    scheme: QuantizationScheme,
    format: CompressionFormat,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    group_index: bool = False,
) -> Mapping[str, Form]:
    """Leaf → form of everything that a Linear or Embedding of this weight shape [out, in] is stored as.

    dtype: of the unquantized model. group_index: whether its columns are assigned to groups one by one. Raises
    ValueError where compressed-tensors cannot quantize this shape by this scheme.
    """
    forms = dict(_linear_forms(scheme.model_dump_json(exclude={"targets", "format"}), format, shape, dtype))
    if group_index:
        forms[GROUP_INDEX] = Form(shape=shape[-1:], dtypes=(torch.int32,))
    return forms


@cache
def _linear_forms(
    text: str, format: CompressionFormat, shape: tuple[int, ...], dtype: torch.dtype
) -> Mapping[str, Form]:
    scheme = QuantizationScheme.model_validate_json(text[:-1] + ', "targets": []}')
    module = _empty_module(shape, dtype)
    observed = {"input": shape[-1:], "weight": shape, "output": shape[:-1]}
    parts = {"input": scheme.input_activations, "weight": scheme.weights, "output": scheme.output_activations}
    for base, args in parts.items():
        if args is not None:
            initialize_qparams(module, base, args, observed_shape=observed[base], observed_dtype=dtype)
    state: dict[str, Tensor] = dict(module.named_parameters())
    if scheme.weights is not None:
        try:
            state = BaseCompressor.get_value_from_registry(format.value).compress(state, scheme)
        except (RuntimeError, AttributeError, TypeError, NotImplementedError, AssertionError, KeyError) as error:
            raise ValueError(f"{format.value} cannot store it: {error}") from error
        _pack_zero_point(state, scheme.weights, format)
    for base, args in parts.items():
        if args is not None and args.symmetric:
            state.pop(f"{base}_zero_point", None)
    return {leaf: _form(leaf, tensor) for leaf, tensor in state.items()}


def attention_forms(
    args: QuantizationArgs, heads: Mapping[str, tuple[int, int]], dtype: torch.dtype
) -> Mapping[str, Form]:
    """Leaf → form of the scales of queries, keys and values. heads: `q`, `k`, `v` → (number of heads, head size)."""
    module = _empty_module((1, 1), dtype)
    for base, (number, size) in heads.items():
        initialize_qparams(
            module,
            base,
            args,
            observed_shape=(number, None, size),
            observed_dtype=dtype,
            force_zero_point=not args.symmetric,
        )
    return {leaf: _form(leaf, tensor) for leaf, tensor in module.named_parameters() if leaf != "weight"}


def format_of(scheme: QuantizationScheme, whole: str) -> CompressionFormat:
    """In which format a module of this scheme is stored, as compressed-tensors reads a configuration.

    whole: the `format` of the configuration, which counts where the group names none.
    """
    named = scheme.format or (whole if whole in {format.value for format in FORMATS} else None)
    return CompressionFormat(named) if named else usual_format(scheme)


def usual_format(scheme: QuantizationScheme) -> CompressionFormat:
    """The format that compressed-tensors chooses for a scheme."""
    return CompressionFormat(infer_module_format(nn.Linear, scheme))


def _empty_module(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    module = nn.Module()
    weight = torch.empty(shape, dtype=dtype, device="meta")
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    return module


def _pack_zero_point(state: dict[str, Tensor], weights: QuantizationArgs, format: CompressionFormat) -> None:
    # compressed-tensors packs zero points along the rows, but leaves them as they are on the meta device.
    zero = state.get("weight_zero_point")
    if format is CompressionFormat.pack_quantized and zero is not None and weights.strategy in PACK_ZP_STRATS:
        rows = math.ceil(zero.shape[0] * weights.num_bits / 32)
        state["weight_zero_point"] = torch.empty((rows, *zero.shape[1:]), dtype=torch.int32, device="meta")


def _form(leaf: str, tensor: Tensor) -> Form:
    shape, dtype = tuple(tensor.shape), tensor.dtype
    if dtype in FLOATS and not leaf.endswith("global_scale"):
        return Form(shape=shape, dtypes=(dtype, *sorted(FLOATS - {dtype}, key=str)))
    if dtype is torch.uint8 and leaf.endswith("scale"):
        return Form(shape=shape, dtypes=(dtype, torch.float8_e8m0fnu))
    if leaf == "weight_shape":
        return Form(shape=shape, dtypes=(dtype, torch.int32))
    return Form(shape=shape, dtypes=(dtype,))
