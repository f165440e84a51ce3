"""What every fused group may be given, at how many bytes and what price: the data of an allocation, from a simulation.

Imports no torch: a card holds all of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quantaudit.errors import FormatError, UsageError
from quantaudit.model.engine_units import built_unquantized, fuse
from quantaudit.provenance import ModelInfo
from quantaudit.quant.weight_bytes import weight_bytes
from quantaudit.simulate.allocation.compute import Serving
from quantaudit.simulate.allocation.hardware import PRESETS
from quantaudit.simulate.records import GroupRow, RecipeRow, SchemeInfo, Simulation
from quantaudit.simulate.sensitivity.recipe_estimate import (
    RecipeEstimate,
    estimate_factor,
    estimate_of,
    uniform_recipes,
)

UNQUANTIZED = None
"""The option that leaves a group in the model's dtype."""
_ITEM_BYTES = {"float32": 4, "float64": 8}
"""Of a weight; others take two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Fused groups that must share a scheme, mostly one.

    schemes: its options by name, UNQUANTIZED among them where that is offered. sizes: bytes of its weights with scales,
    by option. compute: the time of its multiply-accumulates, by option, in billionths of what the unquantized model
    takes; zeros where no hardware is given. prices: nats per token, by option.
    """

    groups: tuple[str, ...]
    schemes: tuple[str | None, ...]
    sizes: tuple[int, ...]
    compute: tuple[int, ...]
    prices: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """All units of a model, and how sums of their prices become KL.

    members: by fused group, its Linears. weights: how many these have, the quantizable ones. rest: bytes of all other
    parameters, which stay as they are. schemes: those on the menu, by name. serving: the hardware, None where none is
    given. not_run: titles of the schemes that it does not run, and that are not on the menu for it. estimate: from a
    sum of prices to KL; factor: by which it may miss to either side, at `level`, None where that is not known.
    measured: simulated recipes that give all groups one scheme, by its name.
    """

    units: tuple[Unit, ...]
    members: Mapping[str, tuple[str, ...]]
    weights: int
    rest: int
    schemes: Mapping[str, SchemeInfo]
    estimate: RecipeEstimate
    level: float
    factor: float | None
    measured: Mapping[str, RecipeRow]
    serving: Serving | None
    not_run: tuple[str, ...]


def menu_of(
    simulation: Simulation,
    model: ModelInfo,
    *,
    level: float = 0.95,
    margin: float | None = None,
    schemes: Collection[str] | None = None,
    unquantized: bool = False,
    serving: Serving | None = None,
) -> Menu:
    """Every fused group in the decoder blocks whose Linears an engine runs quantized, with the schemes that are priced.

    schemes: names of those that are offered; by default all whose ranges do not depend on the order of calibration
    samples. unquantized: whether groups may be left as they are; one that has no price always is. serving: the
    hardware; what that does not run is not offered. level, margin: as for `estimate_factor`. A scheme in which some
    group of a unit has no price is not offered to it; embeddings and output projection stay as they are. Raises
    FormatError where nothing is priced, UsageError where no scheme is left.
    """
    if not any(row.price is not None for row in simulation.groups):
        raise FormatError(
            "no fused group has a price, so that there is nothing to choose by",
            where="the card's simulation",
            hint="make the card again with `quantaudit report`, of a model that fits a backward pass",
        )
    offered = [info for info in simulation.schemes if _offered(info, schemes)]
    infos = {info.name: info for info in offered if serving is None or serving.runs(info)}
    shapes = {
        info.name: (info.weight_shape[0], info.weight_shape[1])
        for info in model.modules
        if info.weight_shape and len(info.weight_shape) == 2 and all(info.weight_shape) and "Linear" in info.classes
    }
    rows: dict[str, dict[str, GroupRow]] = {}
    for row in simulation.groups:
        if row.layer is not None and shapes.keys() >= set(row.members):
            rows.setdefault(row.group, {})[row.scheme] = row
    members = {group: tuple(next(iter(by.values())).members) for group, by in rows.items()}
    never = _never_quantized([info.name for info in model.modules], model.model_type)
    members = {group: paths for group, paths in members.items() if never.isdisjoint(paths)}
    sizes = _Sizes(shapes, _ITEM_BYTES.get(model.dtype, 2))
    counts = {path: sizes.count(path) for paths in members.values() for path in paths}
    shares = {} if serving is None else dict(zip(members, serving.shares(members.values(), counts), strict=True))
    units = tuple(
        _with_compute(_unit(groups, members, rows, infos, sizes, unquantized), infos, shares, serving)
        for groups in _tied(members, list(shapes), model.model_type)
    )
    weights = sum(counts.values())
    if not any(scheme is not UNQUANTIZED for unit in units for scheme in unit.schemes):
        priced = sorted({row.scheme for row in simulation.groups if row.price is not None})
        if serving is not None and offered:
            others = [info.name for info in simulation.schemes if info.name in priced and serving.runs(info)]
            presets = " ".join(f"--scheme {PRESETS[operands]}" for operands in serving.hardware.mac_time)
            raise UsageError(
                f"runs none of {', '.join(info.name for info in offered)}",
                where=f"--hardware {serving.hardware.name}",
                hint=f"it runs {', '.join(others)}, which the card has prices of: name these with --schemes, or leave "
                "that out"
                if others
                else f"give prices of what it runs: `quantaudit report {presets}`",
            )
        raise UsageError("no scheme to choose from is priced", where="--schemes", hint=f"one of {', '.join(priced)}")
    return Menu(
        units=units,
        members=members,
        weights=weights,
        rest=max(model.parameters - weights, 0) * sizes.item,
        schemes=infos,
        estimate=estimate_of([simulation]),
        level=level,
        factor=estimate_factor([simulation], level, margin),
        measured={row.name: row for row, _ in uniform_recipes(simulation) if row.groups == len(members)},
        serving=serving,
        not_run=tuple(info.title for info in offered if info.name not in infos),
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    """shapes: of the Linears' weights, by path. item: bytes of an unquantized weight."""

    shapes: Mapping[str, tuple[int, int]]
    item: int

    def count(self, path: str) -> int:
        rows, columns = self.shapes[path]
        return rows * columns

    def of(self, path: str, info: SchemeInfo | None) -> int:
        """Bytes of one Linear's weight; info: None for UNQUANTIZED."""
        if info is None or info.weights is None:
            return self.count(path) * self.item
        try:
            return weight_bytes(self.shapes[path], info.weights, activations=info.input_activations is not None)
        except (TypeError, ValueError, ZeroDivisionError, IndexError) as error:
            raise FormatError(
                f"weights of the scheme {info.name} have no size: {error}", where="the card's simulation"
            ) from error


def order_dependent(info: SchemeInfo) -> bool:
    """Whether ranges of a scheme depend on the order of calibration samples: those of a moving average do."""
    return info.observer == "minmax"


def _offered(info: SchemeInfo, schemes: Collection[str] | None) -> bool:
    return not order_dependent(info) if schemes is None else info.name in schemes


def _unit(
    groups: Sequence[str],
    members: Mapping[str, tuple[str, ...]],
    rows: Mapping[str, Mapping[str, GroupRow]],
    infos: Mapping[str, SchemeInfo],
    sizes: _Sizes,
    unquantized: bool,
) -> Unit:
    paths = [path for group in groups for path in members[group]]
    options: list[tuple[str | None, int, float]] = []
    for name, info in infos.items():
        prices = [rows[group][name].price if name in rows[group] else None for group in groups]
        known = [price for price in prices if price is not None]
        if len(known) == len(prices):
            options.append((name, sum(sizes.of(path, info) for path in paths), sum(known)))
    if unquantized or not options:
        options.append((UNQUANTIZED, sum(sizes.of(path, None) for path in paths), 0.0))
    return Unit(
        groups=tuple(groups),
        schemes=tuple(name for name, _, _ in options),
        sizes=tuple(size for _, size, _ in options),
        compute=(0,) * len(options),
        prices=tuple(price for _, _, price in options),
    )


def _with_compute(
    unit: Unit, infos: Mapping[str, SchemeInfo], shares: Mapping[str, float], serving: Serving | None
) -> Unit:
    if serving is None:
        return unit
    share = sum(shares[group] for group in unit.groups)
    return replace(
        unit, compute=tuple(serving.cost(share, None if name is None else infos[name]) for name in unit.schemes)
    )


def _never_quantized(names: Sequence[str], model_type: str) -> set[str]:
    """Modules that engines build unquantized whatever a checkpoint says, such as routers."""
    leaves: dict[str, set[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        leaves.setdefault(parent, set()).add(leaf)

    def built(name: str) -> bool:
        holder = name.rpartition(".")[0]
        near = leaves[holder] | leaves.get(holder.rpartition(".")[0], set())
        return built_unquantized(name, near, model_type) is not None

    return {name for name in names if built(name)}


_EXPERT = re.compile(r"(.*)\.\d+\.[^.]+")


def _tied(members: Mapping[str, Sequence[str]], linears: Sequence[str], model_type: str) -> list[list[str]]:
    """Groups that must share a scheme, in the order of the model: those that the engine runs as one in this
    architecture, and all projections of a layer's routed experts.
    """
    owner = {path: group for group, paths in members.items() for path in paths}
    together: dict[str, list[str]] = {group: [group] for group in members}
    for paths in (*_fused(linears, model_type), *_expert_lists(members)):
        groups = list(dict.fromkeys(owner[path] for path in paths if path in owner))
        for other in groups[1:]:
            first, second = together[groups[0]], together[other]
            if first is not second:
                first += second
                together |= dict.fromkeys(second, first)
    return list({id(groups): groups for groups in together.values()}.values())


def _fused(linears: Sequence[str], model_type: str) -> Iterator[list[str]]:
    for parent, _, leaves in fuse(linears, model_type):
        yield [f"{parent}.{leaf}" if parent else leaf for leaf in leaves]


def _expert_lists(members: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Linears of all experts of one list: members of one group differ in a number only where they are experts'."""
    lists: dict[str, list[str]] = {}
    for paths in members.values():
        parents = {match[1] for path in paths if (match := _EXPERT.fullmatch(path))}
        if len({path.rpartition(".")[0] for path in paths}) > 1 and len(parents) == 1:
            lists.setdefault(parents.pop(), []).extend(paths)
    yield from lists.values()
