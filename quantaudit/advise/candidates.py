"""Fused groups that a recipe quantizes, and all that could be done to each instead, with prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compressed_tensors.quantization import QuantizationScheme

from quantaudit.advise.knapsack import Item
from quantaudit.advise.options import Option, fits, menu
from quantaudit.advise.smoothquant import Smoothable
from quantaudit.card.schema import AdviceChange
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import RecipeError
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.ranges import site_qparams
from quantaudit.quant.schemes import Scheme, scheme_from_compressed_tensors
from quantaudit.recipe.resolve import Resolution
from quantaudit.simulate.replay.group_effects import steps
from quantaudit.simulate.sensitivity.prices import price_groups
from quantaudit.stats.site import summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A fused group with what can be done to it. share: of the quantized Linears' MACs; prices: by option."""

    group: Group
    share: float
    options: tuple[Option, ...]
    prices: tuple[float, ...]

    @property
    def item(self) -> Item:
        """The group as the knapsack sees it."""
        return Item(costs=self.prices, losses=tuple(0.0 if o.keeps else self.share for o in self.options))


Choice = list[int]
"""Index of an option for each candidate."""


def candidates(
    loaded: LoadedModel,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    resolution: Resolution,
    *,
    moving_averages: bool = True,
    unquantized: bool = True,
    smoothing: Smoothable | None = None,
    stages: Stages = silent_stages,
) -> list[Candidate]:
    """Groups that the recipe quantizes, each with its options and their prices, in nats per token.

    smoothing: what is known of groups that could be smoothed, which are then offered it.

    A group of which only some members are quantized, or not all alike, is taken whole: serving engines run it as one.
    Raises RecipeError where a group must be quantized (`unquantized` is off) and cannot be, as the recipe has it.
    """
    architecture = loaded.architecture
    groups = quantized_groups(architecture.groups, resolution, profile)
    smooth = smoothing is not None
    menus = {
        id(scheme): menu(scheme, moving_averages=moving_averages, unquantized=unquantized, smoothing=smooth)
        for _, scheme in groups
    }
    wanted: dict[tuple[int, str], Scheme] = {
        (key, option.name): scheme_from_compressed_tensors(f"{index}.{option.name}", option.title, option.scheme)
        for index, (key, options) in enumerate(menus.items())
        for option in options
        if option.scheme is not None
    }
    strengths = {
        wanted[key, option.name].name: option.strength
        for key, options in menus.items()
        for option in options
        if option.strength is not None
    }
    ranges = {
        scheme.name: _ranges(
            scheme,
            [group for group, own in groups if id(own) == key],
            profile,
            smoothing,
            strengths.get(scheme.name),
        )
        for (key, _), scheme in wanted.items()
        if scheme.static
    }
    inside = replace(architecture, groups=tuple(group for group, _ in groups))
    options = list(wanted.values())
    only = {
        group.name: {
            wanted[id(scheme), option.name].name
            for option in menus[id(scheme)]
            if option.scheme is not None and fits(option, _shapes(loaded, group))
        }
        for group, scheme in groups
    }
    prices = price_groups(
        loaded.model,
        inside,
        samples,
        options,
        ranges,
        factors={} if smoothing is None else {name: smoothing.factors[own] for name, own in strengths.items()},
        only=only,
        progress=stages("pricing the menu", len(samples) + steps(inside, options, only)),
    )
    macs = [multiplications(loaded, profile, group) for group, _ in groups]
    found = [
        _candidate(loaded, group, own / sum(macs), menus[id(scheme)], _prices(group, scheme, wanted, prices))
        for (group, scheme), own in zip(groups, macs, strict=True)
    ]
    stuck = [c.group.name for c in found if not any(option.answers("as_written") for option in c.options)]
    if stuck and not unquantized:
        raise RecipeError(
            f"`{stuck[0]}` cannot be quantized as written, and is not to be left unquantized",
            where="--no-unquantized",
            hint="see `quantaudit gate` for why, and give this group another scheme",
        )
    return found


def quantized_groups(
    groups: Sequence[Group], resolution: Resolution, profile: Profile
) -> list[tuple[Group, QuantizationScheme]]:
    """Measured groups of which the recipe quantizes members, each with what it does to most of them."""
    return [
        (group, scheme)
        for group in groups
        if (scheme := _scheme(group, resolution)) is not None and profile.whole(group.site) is not None
    ]


def multiplications(loaded: LoadedModel, profile: Profile, group: Group) -> float:
    """Multiply-accumulates of a group over the profile's tokens: those that reached it, an expert's its own only."""
    seen = profile.whole(group.site)
    weights = sum(_weight(loaded, member).numel() for member in group.members)
    return 0.0 if seen is None else seen.tokens * weights / max(1, len(group.experts))


def uniform(found: Sequence[Candidate], option: str, otherwise: str | None = None) -> Choice | None:
    """The same option everywhere; None where some group has neither it nor `otherwise`."""
    choice = []
    for candidate in found:
        named = [name for name in (option, otherwise) if name and any(o.answers(name) for o in candidate.options)]
        if not named:
            return None
        choice.append(next(index for index, own in enumerate(candidate.options) if own.answers(named[0])))
    return choice


def changes(found: Sequence[Candidate], choice: Choice, profile: Profile) -> list[AdviceChange]:
    """Groups that are treated otherwise than written, those first that gain most."""
    rows = []
    for candidate, index in zip(found, choice, strict=True):
        option = candidate.options[index]
        if option.name != "as_written":
            rows.append(
                AdviceChange(
                    group=candidate.group.name,
                    option=option.name,
                    title=option.title,
                    keeps=option.keeps,
                    price_before=candidate.prices[0] if candidate.options[0].name == "as_written" else None,
                    price_after=candidate.prices[index],
                    amax=None if (seen := profile.whole(candidate.group.site)) is None else summary(seen).amax,
                )
            )
    return sorted(rows, key=lambda row: (row.price_after or 0.0) - (row.price_before or float("inf")))


def _scheme(group: Group, resolution: Resolution) -> QuantizationScheme | None:
    """What a recipe does to most members of a group; None where it leaves them alone."""
    found = [resolution.schemes[member] for member in group.members if member in resolution.schemes]
    if not found:
        return None
    ((common, _),) = Counter(map(id, found)).most_common(1)
    return next(scheme for scheme in found if id(scheme) == common)


def _candidate(
    loaded: LoadedModel, group: Group, share: float, options: Sequence[Option], prices: Mapping[str, float]
) -> Candidate:
    shapes = _shapes(loaded, group)
    usable = [option for option in options if option.name in prices and fits(option, shapes)]
    return Candidate(
        group=group,
        share=share,
        options=tuple(usable),
        prices=tuple(prices[option.name] for option in usable),
    )


def _prices(
    group: Group,
    scheme: QuantizationScheme,
    wanted: Mapping[tuple[int, str], Scheme],
    prices: Mapping[tuple[str, str], float | None],
) -> dict[str, float]:
    """By option; those without a price, for want of a finite range, are left out. Unquantized costs nothing."""
    found = {option: prices[group.name, own.name] for (key, option), own in wanted.items() if key == id(scheme)}
    return {option: price for option, price in found.items() if price is not None} | {"unquantized": 0.0}


def _shapes(loaded: LoadedModel, group: Group) -> list[tuple[int, ...]]:
    return [tuple(_weight(loaded, member).shape) for member in group.members]


def _weight(loaded: LoadedModel, member: str) -> Any:
    return loaded.model.get_submodule(member).weight


def _ranges(
    scheme: Scheme, groups: Sequence[Group], profile: Profile, smoothing: Smoothable | None, strength: float | None
) -> dict[str, QParams | None]:
    """By group; under SmoothQuant only those that it reaches."""
    if scheme.input_activations is None or scheme.observer is None:
        return {}
    if smoothing is not None and strength is not None:
        return {
            group.name: smoothing.qparams(group, strength, scheme)
            for group in groups
            if group.name in smoothing.mappings
        }
    return {
        group.name: site_qparams(profile, group.site, scheme.input_activations, scheme.observer) for group in groups
    }
