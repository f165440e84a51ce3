"""Schemes in the words of reports, with what rules ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from quantaudit.quant.observers import observer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeSummary:
    """One way to quantize Linears.

    static: calibration fixes the input range; local: for all groups of an input together, whose own scales are found as
    the model runs. observer: the card's name for how. weight_strategy: what one scale of the weights is for (`tensor`,
    `channel`, `group`, …), None where they are not quantized. bits: of the weights.
    """

    title: str
    weights: bool
    inputs: bool
    static: bool
    local: bool
    observer: str | None
    observer_in_recipe: str | None
    group_size: int | None
    weight_strategy: str | None
    bits: int | None


def describe(scheme: QuantizationScheme) -> SchemeSummary:
    """What is quantized, how, and over what one scale reaches."""
    weights, inputs = scheme.weights, scheme.input_activations
    parts = [f"{_format(weights)} weights {_strategy(weights)}" if weights else "weights unquantized"]
    static = inputs is not None and inputs.dynamic is not True
    if inputs is not None:
        observer = f" ({inputs.observer or 'minmax'})" if static else ""
        parts.append(f"{_format(inputs)} inputs {'static' if static else 'dynamic'} {_strategy(inputs)}{observer}")
    return SchemeSummary(
        title=", ".join(parts),
        weights=weights is not None,
        inputs=inputs is not None,
        static=static,
        local=inputs is not None and text(inputs.dynamic) == "local",
        observer=observer_of(inputs) if static and inputs is not None else None,
        observer_in_recipe=(inputs.observer or "minmax") if static and inputs is not None else None,
        group_size=weights.group_size if weights is not None and _grouped(weights) else None,
        weight_strategy=None if weights is None else text(weights.strategy),
        bits=None if weights is None else weights.num_bits,
    )


def _format(args: QuantizationArgs) -> str:
    name = "INT" if text(args.type) == "int" else "FP"
    return f"{name}{args.num_bits}{'' if args.symmetric else ' asymmetric'}"


def _strategy(args: QuantizationArgs) -> str:
    return f"in groups of {args.group_size}" if _grouped(args) else f"per {text(args.strategy)}"


def _grouped(args: QuantizationArgs) -> bool:
    return text(args.strategy) in ("group", "tensor_group")


def text(value: object) -> str:
    """An argument of a scheme as text, whether it was given or inferred."""
    # compressed_tensors keeps what it inferred as a member of its enumeration, and what it was given as text.
    return str(value.value if isinstance(value, Enum) else value)
