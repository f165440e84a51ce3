"""Named quantization schemes, as compressed_tensors describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType

from quantaudit.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What happens to a Linear: its weights and its input. observer: whence static ranges come, None when dynamic."""

    name: str
    title: str
    weights: QuantizationArgs | None
    input_activations: QuantizationArgs | None
    observer: str | None

    @property
    def static(self) -> bool:
        """Whether input scales are fixed at calibration."""
        return self.input_activations is not None and not self.input_activations.dynamic


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
SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (INT8_STATIC, INT8_DYNAMIC)}
"""Schemes that a report simulates on fused groups and on the whole model."""

STATIC_INPUTS: dict[str, QuantizationArgs] = {
    INT8_STATIC.name: INT8,
    "int8_asymmetric_static_per_tensor": INT8_ASYMMETRIC,
    "fp8_e4m3_static_per_tensor": FP8_E4M3,
}
"""Ways to quantize an activation per tensor with a fixed scale: for each, scales and tensor errors are derived."""


def find_static(name: str) -> QuantizationArgs:
    """A static per-tensor scheme by name. Raises UsageError."""
    if name not in STATIC_INPUTS:
        raise UsageError("unknown scheme", where=f"--scheme {name}", hint=f"one of {', '.join(STATIC_INPUTS)}")
    return STATIC_INPUTS[name]


def dump_args(args: QuantizationArgs | None) -> dict[str, Any] | None:
    """QuantizationArgs as JSON data, without what is at its default."""
    return None if args is None else args.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
