"""Quantization schemes on a model: how a card lists them, and whether they fit every Linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from pydantic import ValidationError
from torch import nn

from quantaudit.errors import FormatError, UsageError
from quantaudit.model.sites import Group
from quantaudit.provenance import explain
from quantaudit.quant.observers import LLM_COMPRESSOR_NAMES
from quantaudit.quant.schemes import Scheme, dump_args
from quantaudit.quant.support import obstacles
from quantaudit.quant.weights import weight_out_in
from quantaudit.simulate.records import SchemeInfo

_OURS = {ours: theirs for theirs, ours in LLM_COMPRESSOR_NAMES.items()}


def check_fit(scheme: Scheme, model: nn.Module, groups: Sequence[Group]) -> None:
    """Raises UsageError where a scheme's groups do not divide the columns of a Linear in the decoder blocks."""
    resolved = QuantizationScheme(
        targets=["Linear"], weights=scheme.weights, input_activations=scheme.input_activations
    )
    members = [member for group in groups if group.layer is not None for member in group.members]
    for member in members:
        shape = tuple(weight_out_in(model.get_submodule(member)).shape)
        if reasons := obstacles(resolved, shape):
            raise UsageError(
                f"{member}: {reasons[0]}",
                where=f"--scheme {scheme.name}",
                hint="write a recipe that leaves such modules out, and give it with --recipe",
            )


def scheme_info(scheme: Scheme) -> SchemeInfo:
    """A scheme as a card lists it."""
    return SchemeInfo(
        name=scheme.name,
        title=scheme.title,
        weights=dump_args(scheme.weights),
        input_activations=dump_args(scheme.input_activations),
        observer=scheme.observer,
    )


def info_scheme(info: SchemeInfo) -> QuantizationScheme:
    """A scheme of a card in compressed_tensors' terms. Raises FormatError.

    Its observer, where it has one, is the one that ranges came from; one that no recipe can name keeps its own name.
    """
    inputs = info.input_activations
    if inputs is not None and info.observer is not None:
        inputs = {**inputs, "observer": _OURS.get(info.observer, info.observer)}
    try:
        return QuantizationScheme(targets=[], weights=_args(info.weights), input_activations=_args(inputs))
    except ValidationError as error:
        raise FormatError(f"scheme {info.name} of the simulation is not one: {explain(error)}") from error


def _args(data: Mapping[str, Any] | None) -> QuantizationArgs | None:
    return None if data is None else QuantizationArgs.model_validate(data)
