"""Quantization schemes by name, presets of compressed-tensors, and what recipes resolve to, in its types."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
    QuantizationType,
    preset_name_to_scheme,
)

from quantaudit.common.choices import check_scheme, check_static, usual_group_size
from quantaudit.errors import UsageError
from quantaudit.quant.observers import observer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What happens to a Linear: its weights and its input, in the types of compressed-tensors.

    observer: what a calibrated input's range is taken from (`quant.observers.OBSERVERS`); None without calibration.
    """

    name: str
    title: str
    weights: QuantizationArgs | None
    input_activations: QuantizationArgs | None
    observer: str | None

    @property
    def static(self) -> bool:
        """Whether calibration fixes something about the input: its scale, or NVFP4's global scale."""
        return self.input_activations is not None and self.input_activations.dynamic is not True


INT8 = QuantizationArgs(
    num_bits=8,
    type=QuantizationType.INT,
    symmetric=True,
    strategy=QuantizationStrategy.TENSOR,
    observer="static_minmax",
)
INT8_ASYMMETRIC = INT8.model_copy(update={"symmetric": False})
FP8_E4M3 = QuantizationArgs(
    num_bits=8,
    type=QuantizationType.FLOAT,
    symmetric=True,
    strategy=QuantizationStrategy.TENSOR,
    observer="static_minmax",
)
INT8_PER_TOKEN = QuantizationArgs(
    num_bits=8, type=QuantizationType.INT, symmetric=True, strategy=QuantizationStrategy.TOKEN, dynamic=True
)
INT8_PER_CHANNEL = QuantizationArgs(
    num_bits=8, type=QuantizationType.INT, symmetric=True, strategy=QuantizationStrategy.CHANNEL
)


def scheme_from_compressed_tensors(name: str, title: str, scheme: QuantizationScheme) -> Scheme:
    """A scheme as a recipe resolves to it. Its observer is our nearest: `quant.support` says where they differ."""
    args = scheme.input_activations
    return Scheme(
        name=name,
        title=title,
        weights=scheme.weights,
        input_activations=args,
        observer=None if args is None or args.dynamic is True else observer_of(args),
    )


def _preset(preset: str, name: str, title: str) -> Scheme:
    return scheme_from_compressed_tensors(name, title, preset_name_to_scheme(preset, ["Linear"]))


INT8_STATIC = Scheme(
    name="int8_static_per_tensor",
    title="INT8 static per-tensor",
    weights=INT8_PER_CHANNEL,
    input_activations=INT8,
    observer="absolute_maximum",
)
INT8_DYNAMIC = Scheme(
    name="int8_dynamic_per_token",
    title="INT8 dynamic per-token",
    weights=INT8_PER_CHANNEL,
    input_activations=INT8_PER_TOKEN,
    observer=None,
)
INT8_ASYMMETRIC_STATIC = replace(
    INT8_STATIC,
    name="int8_asymmetric_static_per_tensor",
    title="INT8 asymmetric static per-tensor",
    input_activations=INT8_ASYMMETRIC,
)
INT8_ASYMMETRIC_DYNAMIC = replace(
    INT8_DYNAMIC,
    name="int8_asymmetric_dynamic_per_token",
    title="INT8 asymmetric dynamic per-token",
    input_activations=INT8_PER_TOKEN.model_copy(update={"symmetric": False}),
)
INT8_WEIGHTS = replace(
    INT8_DYNAMIC, name="int8_weights", title="W8A16: INT8 weights per channel", input_activations=None
)
FP8_STATIC = _preset("FP8", "fp8_e4m3_static_per_tensor", "FP8 E4M3 static per-tensor")
FP8_DYNAMIC = _preset("FP8_DYNAMIC", "fp8_e4m3_dynamic_per_token", "FP8 E4M3 dynamic per-token")
INT4_WEIGHTS = _preset("W4A16", "int4_weights_group_128", "W4A16: INT4 weights in groups of 128")
INT4_WEIGHTS_INT8_DYNAMIC = _preset(
    "W4A8",
    "int4_weights_group_128_int8_dynamic_per_token",
    "W4A8: INT4 weights in groups of 128, INT8 dynamic per-token",
)
NVFP4 = _preset("NVFP4", "nvfp4", "NVFP4, groups of 16 under a static global scale")
MXFP4 = _preset("MXFP4", "mxfp4", "MXFP4, groups of 32 dynamic")

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (INT8_STATIC, INT8_DYNAMIC)}
"""INT8 with activations, static and dynamic: what cards compare most closely."""

NAMED: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        INT8_STATIC,
        INT8_ASYMMETRIC_STATIC,
        INT8_DYNAMIC,
        INT8_ASYMMETRIC_DYNAMIC,
        INT8_WEIGHTS,
        FP8_STATIC,
        FP8_DYNAMIC,
        INT4_WEIGHTS,
        INT4_WEIGHTS_INT8_DYNAMIC,
        NVFP4,
        MXFP4,
    )
}
"""Schemes that can be asked for by name; so can the presets of compressed-tensors."""

STATIC_INPUTS: dict[str, QuantizationArgs] = {
    INT8_STATIC.name: INT8,
    INT8_ASYMMETRIC_STATIC.name: INT8_ASYMMETRIC,
    FP8_STATIC.name: FP8_E4M3,
}
"""Ways to quantize an activation per tensor with a fixed scale: for each, scales and tensor errors are derived."""


def find_static(name: str) -> QuantizationArgs:
    """A static per-tensor scheme by name. Raises UsageError."""
    return STATIC_INPUTS[check_static(name)]


def find_scheme(spec: str) -> Scheme:
    """A scheme by `NAME` or `NAME:OBSERVER`: a named one, in any of GROUP_SIZES, or a preset of compressed_tensors.

    An observer replaces that of a scheme whose input scale is static. Raises UsageError.
    """
    name, _, observer = check_scheme(spec).partition(":")
    usual = usual_group_size(name)
    if usual in NAMED:
        scheme = NAMED[usual] if name == usual else in_groups(NAMED[usual], group_size(name))
    else:
        scheme = _preset(name, name.lower(), f"{name.upper()} (preset of compressed-tensors)")
    if not observer:
        return scheme
    args = scheme.input_activations
    if args is None or args.dynamic is not False:
        raise UsageError(
            f"{name} has no static input scale for an observer to set",
            where=f"--scheme {spec}",
            hint=f"--scheme {name}",
        )
    return replace(scheme, name=spec, title=f"{scheme.title}, {observer}", observer=observer)


def in_groups(scheme: Scheme, size: int) -> Scheme:
    """The same with weights in groups of so many columns, which its name and title say."""
    args = scheme.weights
    if args is None or args.group_size == size:
        return scheme
    return replace(
        scheme,
        name=re.sub(r"group_\d+", f"group_{size}", scheme.name),
        title=re.sub(r"groups of \d+", f"groups of {size}", scheme.title),
        weights=args.model_copy(update={"group_size": size}),
    )


def group_size(name: str) -> int:
    """The one that a scheme's name says."""
    return int(name.split("group_")[1].partition("_")[0])


def dump_args(args: QuantizationArgs | None) -> dict[str, Any] | None:
    """QuantizationArgs as JSON data, without what is at its default."""
    return None if args is None else args.model_dump(mode="json", exclude_defaults=True, exclude_none=True)


def global_scaled(args: QuantizationArgs) -> bool:
    """Whether group scales depend on one scale of the whole tensor, as NVFP4's do."""
    return bool(args.strategy == QuantizationStrategy.TENSOR_GROUP)
