"""The evidence of a gate, joined once: a recipe, what it resolves to, and what a card knows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from quantaudit.card.schema import Card, SiteRow
from quantaudit.card.schema.verdict import SealState
from quantaudit.card.seal import seal_state
from quantaudit.gate.group_assignment import GroupAssignment
from quantaudit.gate.recipe_kl import measured_row, score
from quantaudit.gate.report import SchemeUse, Score
from quantaudit.gate.scheme_summary import SchemeSummary, describe
from quantaudit.gate.vllm_configuration import Parting, Unit, partings, units
from quantaudit.model.engine_units import BuiltUnquantized, built_unquantized
from quantaudit.model.groups import Group, layer_groups, outer_groups
from quantaudit.model.structure import ExpertList, expert_lists
from quantaudit.policy import Policy
from quantaudit.quant.schemes import STATIC_INPUTS
from quantaudit.recipe.digest import identity, input_identity
from quantaudit.recipe.modifiers.smoothquant import Smoothing
from quantaudit.recipe.modifiers.trial import Trial, try_scheme
from quantaudit.recipe.parse import ParsedRecipe
from quantaudit.recipe.resolve import Resolution, resolve
from quantaudit.recipe.skeleton import skeleton_model
from quantaudit.recipe.yaml_positions import Keys
from quantaudit.simulate.records import GroupRow, RecipeRow, Simulation, TensorErrorRow
from quantaudit.simulate.scheme_info import check_names, info_scheme

ROTATIONS = {"AWQModifier", "SpinQuantModifier", "QuIPModifier"}
"""Modifiers that change weights, or weights and inputs, anywhere before they are quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedScheme:
    """One scheme of the recipe on the Linears that it is given to, with the outcome of trying it."""

    scheme: QuantizationScheme
    summary: SchemeSummary
    members: tuple[str, ...]
    trial: Trial


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What rules about a recipe are given.

    assignments: every fused group that the recipe touches. linears: of the whole model. measured: the row of a
    simulation that the score is of, where there is one. shapes: of the weights of what is quantized. units: all that
    the engine runs under one scheme. partings: units that the engine would load otherwise than they are saved.
    unquantized: quantized Linears that the engine builds unquantized.
    trials: every scheme that Linears are given, and what came of trying it. skeleton: the modules, without weights.
    linear_inputs: Linears that read one tensor, of the whole model, and that tensor.
    """

    recipe: ParsedRecipe
    resolution: Resolution
    card: Card
    policy: Policy
    simulation: Simulation | None
    assignments: tuple[GroupAssignment, ...]
    linears: int
    score: Score
    measured: RecipeRow | None
    smoothings: tuple[Smoothing, ...]
    shapes: Mapping[str, tuple[int, ...]]
    units: tuple[Unit, ...]
    partings: tuple[Parting, ...]
    unquantized: Mapping[str, BuiltUnquantized]
    trials: tuple[TriedScheme, ...]
    skeleton: nn.Module
    linear_inputs: tuple[tuple[tuple[str, ...], SiteRow], ...]

    @cached_property
    def seal(self) -> SealState:
        """Whether the card is as it was written."""
        return seal_state(self.card)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by path, without weights."""
        return dict(self.skeleton.named_modules())

    def is_linear(self, name: str) -> bool:
        """Whether a module is a Linear."""
        return isinstance(self.modules.get(name), nn.Linear)

    @cached_property
    def schemes_of_linears(self) -> dict[str, SchemeSummary]:
        """Every Linear that the recipe quantizes, measured or not, and how."""
        return {name: tried.summary for tried in self.trials for name in tried.members}

    @cached_property
    def schemes(self) -> dict[str, SchemeSummary]:
        """Module path → how it is quantized."""
        return {
            member: summary
            for assignment in self.assignments
            for summary, members in assignment.schemes.items()
            if summary
            for member in members
        }

    def place(self, name: str) -> Keys | None:
        """Where the recipe gives a module, or a fused group, its scheme; None where it gives it none."""
        members = next((assignment.members for assignment in self.assignments if assignment.name == name), (name,))
        origin = next((self.resolution.origins[m] for m in members if m in self.resolution.origins), None)
        if origin is None:
            return None
        modifier = self.recipe.modifiers[origin.modifier].keys
        group = (*modifier, "config_groups", origin.group)
        return self.recipe.positions.find(group if group in self.recipe.positions.places else modifier, origin.target)

    @cached_property
    def rows(self) -> list[GroupRow]:
        """What was simulated of each fused group under the very scheme that the recipe gives it."""
        return [assignment.row for assignment in self.assignments if assignment.row is not None]

    @property
    def incomplete(self) -> bool:
        """Whether part of the recipe is in no number here, so that the score cannot speak for it."""
        return bool(self.resolution.unsimulated or self.score.left_out)

    def as_simulated(self, assignment: GroupAssignment) -> bool:
        """Whether what the recipe quantizes in a group is what was simulated: no transform has come before."""
        if any(parsed.name in ROTATIONS for parsed in self.recipe.modifiers):
            return False
        return not any(set(assignment.members) & smoothing.balance_layers for smoothing in self.smoothings)

    @cached_property
    def quantized(self) -> list[SchemeUse]:
        """The recipe's schemes and how many modules each has, most first."""
        counts: dict[str, int] = {}
        for summary in self.schemes.values():
            counts[summary.title] = counts.get(summary.title, 0) + 1
        return [
            SchemeUse(title=title, modules=count) for title, count in sorted(counts.items(), key=lambda item: -item[1])
        ]


def gather(recipe: ParsedRecipe, card: Card, policy: Policy, simulation: Simulation | None) -> Evidence:
    """Resolve the recipe on the card's modules and join it with what was measured and simulated.

    simulation: one in addition to the card's, whose scores go first. Raises RecipeError, and FormatError where a scheme
    of theirs is not what its name says.
    """
    for one, where in ((simulation, "--simulation"), (card.simulation, "card")):
        check_names(one.schemes if one else (), where=where)
    skeleton = skeleton_model(card.model.modules, card.model.architecture)
    resolution = resolve(recipe, skeleton)
    simulations = [one for one in (simulation, card.simulation) if one is not None]
    banks = _banks(card, skeleton)
    groups = _fused_groups(card, skeleton, banks)
    sites = {site.name: site for site in card.sites}
    assignments = tuple(_assignments(groups, resolution, card, simulations))
    kind = card.model.model_type
    linears = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)]
    measured = measured_row(resolution, simulations)
    every = tuple(units(linears, [bank for bank, _ in banks], kind))
    touched = [unit for unit in every if any(member in resolution.schemes for member in unit.members)]
    return Evidence(
        recipe=recipe,
        resolution=resolution,
        card=card,
        policy=policy,
        simulation=next(iter(simulations), None),
        assignments=assignments,
        linears=len(linears),
        score=score(resolution, assignments, simulations, measured, policy, card.corpus),
        measured=measured,
        smoothings=resolution.smoothings,
        shapes={
            name: tuple(module.weight.shape)
            for name, module in skeleton.named_modules()
            if name in resolution.schemes and isinstance(getattr(module, "weight", None), nn.Parameter)
        },
        units=every,
        partings=tuple(partings(touched, resolution.schemes, skeleton, kind)),
        unquantized=_unquantized(resolution, skeleton, kind),
        trials=tuple(_tried(resolution, set(linears))),
        skeleton=skeleton,
        linear_inputs=tuple((group.members, sites[group.site]) for group in groups if group.site in sites),
    )


def _unquantized(resolution: Resolution, skeleton: nn.Module, model_type: str) -> dict[str, BuiltUnquantized]:
    modules = dict(skeleton.named_modules())
    unquantized = {}
    for name in resolution.schemes:
        holder = modules[name.rpartition(".")[0]]
        above = modules[name.rpartition(".")[0].rpartition(".")[0]]
        row = built_unquantized(name, {*holder._modules, *above._modules}, model_type)
        if row is not None:
            unquantized[name] = row
    return unquantized


def _tried(resolution: Resolution, linears: AbstractSet[str]) -> Iterator[TriedScheme]:
    """Every scheme that Linears are given, tried once."""
    members: dict[int, list[str]] = {}
    for name, scheme in resolution.schemes.items():
        if name in linears:
            members.setdefault(id(scheme), []).append(name)
    by_id = {id(scheme): scheme for scheme in resolution.schemes.values()}
    for key, names in members.items():
        scheme = by_id[key]
        yield TriedScheme(scheme=scheme, summary=describe(scheme), members=tuple(names), trial=try_scheme(scheme))


def fused_groups(card: Card, skeleton: nn.Module) -> list[Group]:
    """The fused groups that measuring found, from the card's decoder blocks (its residual sites)."""
    return _fused_groups(card, skeleton, _banks(card, skeleton))


def _banks(card: Card, skeleton: nn.Module) -> list[tuple[ExpertList, SiteRow]]:
    """The routed experts of every decoder block, each with the block's residual site."""
    modules = dict(skeleton.named_modules())
    blocks = [site for site in card.sites if site.kind == "residual" and site.layer is not None]
    return [
        (bank, site)
        for site in blocks
        if site.module in modules
        for bank in expert_lists(modules[site.module], site.module)
    ]


def _fused_groups(card: Card, skeleton: nn.Module, banks: Sequence[tuple[ExpertList, SiteRow]]) -> list[Group]:
    groups = []
    modules = dict(skeleton.named_modules())
    for site in card.sites:
        if site.kind == "residual" and site.layer is not None and site.module in modules:
            inside = [bank for bank, block in banks if block is site]
            groups += layer_groups(modules[site.module], site.module, site.layer, inside)
    head = next((site.module for site in card.sites if site.name == "lm_head.input"), None)
    return groups + list(outer_groups(skeleton, {member for group in groups for member in group.members}, head))


def _assignments(
    groups: Sequence[Group], resolution: Resolution, card: Card, simulations: Sequence[Simulation]
) -> Iterator[GroupAssignment]:
    sites = {site.name: site for site in card.sites}
    distinct = {id(scheme): scheme for scheme in resolution.schemes.values()}
    summaries = {key: (identity(scheme), describe(scheme)) for key, scheme in distinct.items()}
    rows: dict[tuple[str, str], GroupRow] = {}
    errors: dict[tuple[str, str, str], TensorErrorRow] = {}
    for simulation in reversed(simulations):
        names = {info.name: identity(info_scheme(info)) for info in simulation.schemes}
        rows |= {(row.group, names[row.scheme]): row for row in simulation.groups if row.scheme in names}
        errors |= {(row.group, row.scheme, row.observer): row for row in simulation.sites}
    static_inputs = {input_identity(args): name for name, args in STATIC_INPUTS.items()}
    for group in groups:
        members_of: dict[SchemeSummary | None, list[str]] = {}
        for member in group.members:
            scheme = resolution.schemes.get(member)
            members_of.setdefault(None if scheme is None else summaries[id(scheme)][1], []).append(member)
        if set(members_of) == {None}:
            continue
        scheme = next(resolution.schemes[member] for member in group.members if member in resolution.schemes)
        summary = summaries[id(scheme)][1]
        named = static_inputs.get(input_identity(scheme.input_activations)) if scheme.input_activations else None
        if summary.observer == "minmax" and scheme.input_activations and scheme.input_activations.observer_kwargs:
            named = None
        yield GroupAssignment(
            name=group.name,
            projection=group.projection,
            layer=group.layer,
            members=group.members,
            schemes={summary: tuple(members) for summary, members in members_of.items()},
            site=sites.get(group.site),
            inputs=named,
            errors=errors.get((group.name, named, summary.observer)) if named and summary.observer else None,
            row=rows.get((group.name, summaries[id(scheme)][0])) if len(members_of) == 1 else None,
        )
