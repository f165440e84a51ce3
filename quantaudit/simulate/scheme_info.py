"""Quantization schemes on a model: how a card lists them, whether they fit every Linear, and whose scores are whose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from pydantic import ValidationError
from torch import nn

from quantaudit.common.choices import of_any_group_size
from quantaudit.errors import FormatError, UsageError
from quantaudit.model.sites import Group
from quantaudit.provenance import explain
from quantaudit.quant.observers import LLM_COMPRESSOR_NAMES
from quantaudit.quant.schemes import NAMED, Scheme, dump_args, find_scheme, group_size, in_groups
from quantaudit.quant.standard import check_shapes
from quantaudit.quant.weights import weight_out_in
from quantaudit.recipe.digest import scheme_digest
from quantaudit.simulate.records import RecipeRow, SchemeInfo, Simulation

_OURS = {ours: theirs for theirs, ours in LLM_COMPRESSOR_NAMES.items()}


_DEFINES = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic")
"""What a name fixes of weights or inputs; how scales are stored is up to the version of compressed-tensors."""


def check_names(schemes: Iterable[SchemeInfo], *, where: str) -> None:
    """Refuse schemes of a card or simulation that are not what their names, or titles, say. Raises FormatError.

    Only our own names and titles say anything: others are free. where: the part that lists the schemes.
    """
    for info in schemes:
        for problem in _misnamed(info):
            raise FormatError(
                f"{where}: {info.name}: {problem}", hint="make the card, or the simulation, again, and do not edit it"
            )


def _misnamed(info: SchemeInfo) -> Iterator[str]:
    ours = _named(info.name)
    titled = next((one for one in NAMED.values() if _sizeless(one.title) == _sizeless(info.title)), None)
    if titled is not None and (
        of_any_group_size(titled.name) != of_any_group_size(info.name) or (ours and ours.title != info.title)
    ):
        yield f"its title, {info.title!r}, is that of another scheme"
    if ours is None:
        return
    said, meant = info_scheme(info), info_scheme(scheme_info(ours))
    for part, words in (("weights", "weights are"), ("input_activations", "inputs are")):
        if _definition(getattr(said, part)) != _definition(getattr(meant, part)):
            yield f"its {words} not quantized as under the scheme of this name"
    # A bare name says that there is an observer, or none; which one, the ranges of that run had.
    if info.observer != ours.observer and (":" in info.name or None in (info.observer, ours.observer)):
        yield f"its observer is {info.observer}, and that of the scheme of this name is {ours.observer}"


def _named(name: str) -> Scheme | None:
    """The scheme that a name of ours stands for, in groups of the size that the name gives; None for other names."""
    usual = next((one for one in NAMED if of_any_group_size(one) == of_any_group_size(name)), name)
    try:
        return in_groups(find_scheme(usual), group_size(name)) if usual != name else find_scheme(name)
    except UsageError:
        return None


def _sizeless(title: str) -> str:
    return re.sub(r"groups of \d+", "groups", title)


def _definition(args: QuantizationArgs | None) -> tuple[object, ...] | None:
    return None if args is None else tuple(getattr(args, field) for field in _DEFINES)


def check_fit(scheme: Scheme, model: nn.Module, groups: Sequence[Group]) -> None:
    """Raises UsageError where a scheme's groups do not divide the columns of a Linear in the decoder blocks."""
    members = [member for group in groups if group.layer is not None for member in group.members]
    check_shapes(scheme, {member: _shape(model.get_submodule(member)) for member in members})


def _shape(module: nn.Module) -> tuple[int, int]:
    rows, columns = weight_out_in(module).shape
    return rows, columns


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


def rows_of(simulation: Simulation, digest: str) -> Iterator[RecipeRow]:
    """Scores of a simulation that are of the recipe with this digest."""
    uniform = uniform_digests(simulation)
    yield from (row for row in simulation.recipes if (row.digest or uniform.get(row.name)) == digest)


def uniform_digests(simulation: Simulation) -> dict[str, str]:
    """Digests of the rows that give every group inside the decoder layers one scheme and are named as that scheme."""
    return {
        info.name: scheme_digest(
            {
                member: scheme
                for row in simulation.groups
                if row.scheme == info.name and row.layer is not None
                for member in row.members
            }
        )
        for info in simulation.schemes
        for scheme in [info_scheme(info)]
    }
