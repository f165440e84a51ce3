"""Everything that rules look at, joined once: a recipe, what it resolves to, and what a card knows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import nn

from quantaudit.card.schema import Card, SiteRow
from quantaudit.model.groups import Group, layer_groups, outer_groups
from quantaudit.model.structure import expert_banks
from quantaudit.policy import Policy
from quantaudit.quant.scales import observer_of
from quantaudit.quant.schemes import STATIC_INPUTS
from quantaudit.recipe.digest import identity, input_identity
from quantaudit.recipe.lines import Keys
from quantaudit.recipe.records import SchemeUse, Score
from quantaudit.recipe.resolve import Resolution, resolve
from quantaudit.recipe.score import info_scheme, score
from quantaudit.recipe.shell import shell_model
from quantaudit.recipe.smoothing import Smoothing
from quantaudit.recipe.source import ParsedRecipe
from quantaudit.simulate.records import GroupRow, Simulation, TensorErrorRow

ROTATIONS = {"AWQModifier", "SpinQuantModifier", "QuIPModifier"}
"""Modifiers that change weights, or weights and inputs, anywhere before they are quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A way to quantize Linears. static: calibration fixes the input range; observer: the card's name for how."""

    title: str
    weights: bool
    inputs: bool
    static: bool
    observer: str | None
    toolkit_observer: str | None
    group_size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUse:
    """One fused group under the recipe.

    schemes: the ways in which members are quantized → those members; None for those that are left alone.
    site: its measured input. inputs: the card's name for the static scheme of that input, under the default constant of
    a moving average. errors: of the input under it. row: damage and price under the same scheme as the recipe's, where
    the whole group has one that was simulated.
    """

    name: str
    projection: str
    layer: int | None
    members: tuple[str, ...]
    schemes: Mapping[Quantized | None, tuple[str, ...]]
    site: SiteRow | None
    inputs: str | None
    errors: TensorErrorRow | None
    row: GroupRow | None

    @property
    def mixed(self) -> bool:
        """Whether members are treated differently."""
        return len(self.schemes) > 1

    @property
    def quantized(self) -> tuple[Quantized, ...]:
        """The ways in which members are quantized; empty where the whole group is left alone."""
        return tuple(way for way in self.schemes if way is not None)

    @property
    def static(self) -> bool:
        """Whether any member's input has a range that calibration fixes."""
        return any(way.static for way in self.quantized)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What rules are given. uses: every fused group that the recipe touches. linears: of the whole model."""

    recipe: ParsedRecipe
    resolution: Resolution
    card: Card
    policy: Policy
    simulation: Simulation | None
    uses: tuple[GroupUse, ...]
    linears: int
    score: Score
    smoothings: tuple[Smoothing, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def ways(self) -> dict[str, Quantized]:
        """Module path → how it is quantized."""
        return {member: way for use in self.uses for way, members in use.schemes.items() if way for member in members}

    def place(self, name: str) -> Keys | None:
        """Where the recipe gives a module, or a fused group, its scheme; None where it gives it none."""
        members = next((use.members for use in self.uses if use.name == name), (name,))
        origin = next((self.resolution.origins[m] for m in members if m in self.resolution.origins), None)
        if origin is None:
            return None
        modifier = self.recipe.modifiers[origin.modifier].keys
        group = (*modifier, "config_groups", origin.group)
        return self.recipe.lines.find(group if group in self.recipe.lines.places else modifier, origin.target)

    @property
    def incomplete(self) -> bool:
        """Whether part of the recipe is in no number here, so that the score cannot speak for it."""
        return bool(self.resolution.unsimulated or self.score.left_out)

    def as_simulated(self, use: GroupUse) -> bool:
        """Whether what the recipe quantizes in a group is what was simulated: no transform has come before."""
        if any(parsed.name in ROTATIONS for parsed in self.recipe.modifiers):
            return False
        return not any(set(use.members) & smoothing.balanced for smoothing in self.smoothings)

    @cached_property
    def quantized(self) -> list[SchemeUse]:
        """The recipe's schemes and how many modules each has, most first."""
        counts: dict[str, int] = {}
        for way in self.ways.values():
            counts[way.title] = counts.get(way.title, 0) + 1
        return [
            SchemeUse(title=title, modules=count) for title, count in sorted(counts.items(), key=lambda item: -item[1])
        ]


def gather(recipe: ParsedRecipe, card: Card, policy: Policy, simulation: Simulation | None) -> Evidence:
    """Resolve the recipe on the card's modules and join it with what was measured and simulated.

    simulation: one beside the card's own, whose scores go first. Raises RecipeError.
    """
    shell = shell_model(card.model.modules, card.model.architecture)
    resolution = resolve(recipe, shell)
    simulations = [found for found in (simulation, card.simulation) if found is not None]
    uses = tuple(_uses(fused_groups(card, shell), resolution, card, simulations))
    return Evidence(
        recipe=recipe,
        resolution=resolution,
        card=card,
        policy=policy,
        simulation=next(iter(simulations), None),
        uses=uses,
        linears=sum(isinstance(module, nn.Linear) for module in shell.modules()),
        score=score(resolution, uses, simulations, card.corpus.sha256),
        smoothings=resolution.smoothings,
        shapes={
            name: tuple(module.weight.shape)
            for name, module in shell.named_modules()
            if name in resolution.schemes and isinstance(getattr(module, "weight", None), nn.Parameter)
        },
    )


def fused_groups(card: Card, shell: nn.Module) -> list[Group]:
    """The fused groups that measuring found, from the card's decoder blocks (its residual sites)."""
    groups = []
    modules = dict(shell.named_modules())
    for site in card.sites:
        if site.kind == "residual" and site.layer is not None and site.module in modules:
            layer = modules[site.module]
            groups += layer_groups(layer, site.module, site.layer, expert_banks(layer, site.module))
    head = next((site.module for site in card.sites if site.name == "lm_head.input"), None)
    return groups + list(outer_groups(shell, {member for group in groups for member in group.members}, head))


def _uses(
    groups: Sequence[Group], resolution: Resolution, card: Card, simulations: Sequence[Simulation]
) -> Iterator[GroupUse]:
    sites = {site.name: site for site in card.sites}
    distinct = {id(scheme): scheme for scheme in resolution.schemes.values()}
    known = {key: (identity(scheme), _describe(scheme)) for key, scheme in distinct.items()}
    rows: dict[tuple[str, str], GroupRow] = {}
    errors: dict[tuple[str, str, str], TensorErrorRow] = {}
    for simulation in reversed(simulations):
        names = {info.name: identity(info_scheme(info)) for info in simulation.schemes}
        rows |= {(row.group, names[row.scheme]): row for row in simulation.groups if row.scheme in names}
        errors |= {(row.group, row.scheme, row.observer): row for row in simulation.sites}
    static_inputs = {input_identity(args): name for name, args in STATIC_INPUTS.items()}
    for group in groups:
        found: dict[Quantized | None, list[str]] = {}
        for member in group.members:
            scheme = resolution.schemes.get(member)
            found.setdefault(None if scheme is None else known[id(scheme)][1], []).append(member)
        if set(found) == {None}:
            continue
        scheme = next(resolution.schemes[member] for member in group.members if member in resolution.schemes)
        way = known[id(scheme)][1]
        named = static_inputs.get(input_identity(scheme.input_activations)) if scheme.input_activations else None
        if way.observer == "minmax" and scheme.input_activations and scheme.input_activations.observer_kwargs:
            named = None
        yield GroupUse(
            name=group.name,
            projection=group.projection,
            layer=group.layer,
            members=group.members,
            schemes={way: tuple(members) for way, members in found.items()},
            site=sites.get(group.site),
            inputs=named,
            errors=errors.get((group.name, named, way.observer)) if named and way.observer else None,
            row=rows.get((group.name, known[id(scheme)][0])) if len(found) == 1 else None,
        )


def _describe(scheme: QuantizationScheme) -> Quantized:
    weights, inputs = scheme.weights, scheme.input_activations
    parts = [f"{_format(weights)} weights {_strategy(weights)}" if weights else "weights as they are"]
    static = inputs is not None and inputs.dynamic is not True
    if inputs is not None:
        observer = f" ({inputs.observer or 'minmax'})" if static else ""
        parts.append(f"{_format(inputs)} inputs {'static' if static else 'dynamic'} {_strategy(inputs)}{observer}")
    return Quantized(
        title=", ".join(parts),
        weights=weights is not None,
        inputs=inputs is not None,
        static=static,
        observer=observer_of(inputs) if static and inputs is not None else None,
        toolkit_observer=(inputs.observer or "minmax") if static and inputs is not None else None,
        group_size=weights.group_size if weights is not None and _grouped(weights) else None,
    )


def _format(args: QuantizationArgs) -> str:
    name = "INT" if _text(args.type) == "int" else "FP"
    return f"{name}{args.num_bits}{'' if args.symmetric else ' asymmetric'}"


def _strategy(args: QuantizationArgs) -> str:
    return f"in groups of {args.group_size}" if _grouped(args) else f"per {_text(args.strategy)}"


def _grouped(args: QuantizationArgs) -> bool:
    return _text(args.strategy) in ("group", "tensor_group")


def _text(value: object) -> str:
    # compressed_tensors keeps what it inferred as a member of its enumeration, and what it was given as text.
    return str(value.value if isinstance(value, Enum) else value)
