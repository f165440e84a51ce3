"""Chosen schemes as a recipe for llm-compressor, checked: it must resolve to exactly these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from compressed_tensors.quantization import QuantizationScheme

from quantaudit.advise.allocate import Allocation, simulation_of
from quantaudit.advise.written.write_recipe import ConfigGroup, Target, arguments, write_recipe
from quantaudit.card.text import counted, visible
from quantaudit.errors import RecipeError
from quantaudit.model.blockwise.memory import size_text
from quantaudit.model.engine_units import engine_name
from quantaudit.recipe.digest import identity
from quantaudit.recipe.parse import parse_recipe
from quantaudit.recipe.patterns import exact_patterns
from quantaudit.recipe.resolve import resolve
from quantaudit.recipe.skeleton import skeleton_model
from quantaudit.simulate.allocation import UNQUANTIZED, Hardware
from quantaudit.simulate.scheme_info import info_scheme

Schemes = Mapping[str, QuantizationScheme]
"""By name, each a single object."""


def recipe_text(allocation: Allocation, header: Sequence[str]) -> str:
    """YAML for llm-compressor, one config group for each scheme. header: lines of the comment that it begins with.

    Raises RecipeError should it not resolve to exactly the chosen schemes.
    """
    schemes = {
        name: info_scheme(info)
        for name, info in allocation.menu.schemes.items()
        if name in allocation.point.schemes.values()
    }
    groups = [
        ConfigGroup(
            name=re.sub(r"\W+", "_", name),
            arguments=arguments(scheme),
            targets=tuple(_targets(allocation, name)),
        )
        for name, scheme in schemes.items()
    ]
    text = write_recipe(groups, header=header, left=list(_targets(allocation, UNQUANTIZED)))
    _check(text, allocation, schemes)
    return text


def compute_text(compute: float, hardware: Hardware) -> str:
    """What multiply-accumulates take, as a sentence."""
    return (
        f"Multiply-accumulates of these Linears take {100 * compute:.3g}% of the unquantized model's time on "
        f"{visible(hardware.name)}, by its table."
    )


def header(allocation: Allocation, goal: str, score: str, *, measured: bool) -> list[str]:
    """What the recipe is, for whom, and how much of that is known. score: its KL in words; measured: whether the card
    holds a simulation of this very recipe.
    """
    model, point = allocation.card.model, allocation.point
    lines = [
        f"Schemes for {model.name} (weights {model.fingerprint[:16]}): {goal}.",
        f"{point.bits:.4g} bits for each quantizable weight, scales included; {size_text(point.size)} of weights.",
        f"{score}.",
    ]
    if allocation.menu.serving is not None and point.compute is not None:
        lines.insert(2, compute_text(point.compute, allocation.menu.serving.hardware))
    if not measured:
        lines.append("This recipe was estimated, not simulated: verify it with `quantaudit verify`.")
    if allocation.calibrated:
        lines.append("Some inputs have static ranges: run `oneshot` on calibration samples.")
    lines.append("Behind each target: its fused groups, and the KL that they are priced at, in nats per token.")
    return lines


def _targets(allocation: Allocation, scheme: str | None) -> Iterator[Target]:
    """The patterns of one scheme, each with its groups and what they cost; none where it was not chosen."""
    if scheme not in allocation.point.schemes.values():
        return
    owner = {member: group for group, members in allocation.menu.members.items() for member in members}
    among = [module.name for module in allocation.card.model.modules]
    model_type = allocation.card.model.model_type
    prices = {(row.group, row.scheme): row.price for row in simulation_of(allocation.card).groups}
    smaller = _next_smaller(allocation, scheme)
    for pattern in exact_patterns(allocation.members(scheme), among, lambda name: engine_name(name, model_type)):
        groups = dict.fromkeys(owner[name] for name in pattern.names)
        reason = counted(len(groups), "group")
        if scheme is not UNQUANTIZED:
            reason += f", {_summed(groups, scheme, prices)}"
        if smaller is not None:
            reason += f"; {_summed(groups, smaller, prices)} in {smaller}"
        yield Target(names=(pattern.target,), reason=reason)


def _summed(groups: Iterable[str], scheme: str, prices: Mapping[tuple[str, str], float | None]) -> str:
    known = [prices.get((group, scheme)) for group in groups]
    numbers = [price for price in known if price is not None]
    return f"{sum(numbers):.2g}" if len(numbers) == len(known) else "no price"


def _next_smaller(allocation: Allocation, scheme: str | None) -> str | None:
    """The scheme of the recipe that takes less than this one, and most of those; None for the smallest."""
    names = set(allocation.point.schemes.values())
    unit = next((unit for unit in allocation.menu.units if names <= set(unit.schemes)), None)
    if unit is None:
        return None
    sizes = {name: size for name, size in zip(unit.schemes, unit.sizes, strict=True) if name in names}
    smaller = [name for name in sizes if name is not None and sizes[name] < sizes[scheme]]
    return max(smaller, key=lambda name: sizes[name], default=None)


def _check(text: str, allocation: Allocation, schemes: Schemes) -> None:
    """Raises RecipeError where a recipe does not give every Linear exactly the scheme that was chosen for it."""
    model = allocation.card.model
    resolution = resolve(parse_recipe(text, "advised recipe"), skeleton_model(model.modules, model.architecture))
    wanted = {member: identity(scheme) for name, scheme in schemes.items() for member in allocation.members(name)}
    if {name: identity(scheme) for name, scheme in resolution.schemes.items()} != wanted or resolution.unsimulated:
        raise RecipeError(
            "the advised recipe does not resolve to the schemes that were chosen",
            where=model.name,
            hint="please report this with the model's name",
        )
