"""Quantization schemes on a model: how a card lists them, and whether they fit every Linear."""

from __future__ import annotations

from collections.abc import Sequence

from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from quantaudit.errors import UsageError
from quantaudit.model.sites import Group
from quantaudit.quant.schemes import Scheme, dump_args
from quantaudit.quant.support import obstacles
from quantaudit.quant.weights import weight_out_in
from quantaudit.simulate.records import SchemeInfo


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
