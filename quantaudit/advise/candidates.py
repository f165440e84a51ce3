"""Fused groups that a recipe quantizes, and all that could be done to each instead, with prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compressed_tensors.quantization import QuantizationScheme

from quantaudit.advise.goal import Offers
from quantaudit.advise.knapsack import Item
from quantaudit.advise.options import AS_WRITTEN, Option, fits, options_for
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
from quantaudit.recipe.digest import identity
from quantaudit.recipe.resolve import Resolution
from quantaudit.simulate.cost import PRICING
from quantaudit.simulate.experiment import Experiment, InputRanges
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.replay.linear_sensitivity import PriceList
from quantaudit.simulate.replay.replay_groups import steps
from quantaudit.simulate.scheme_info import info_scheme
from quantaudit.simulate.sensitivity.prices import price_groups
from quantaudit.stats.site import summary

CHANGE = 0.001
"""Share of the MACs that a changed group must buy: what buys less stays as it is written."""


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
        return Item(costs=self.prices, lost_macs=tuple(0.0 if o.keeps_format else self.share for o in self.options))

    @property
    def item_with_changes(self) -> Item:
        """The same where a change counts for itself, too, as if it lost a few MACs."""
        lost = (
            macs if option.name == AS_WRITTEN else macs + CHANGE
            for macs, option in zip(self.item.lost_macs, self.options, strict=True)
        )
        return Item(costs=self.prices, lost_macs=tuple(lost))


Choice = list[int]
"""Index of an option for each candidate."""


SimulatedPrices = Mapping[tuple[str, str], float]
"""By fused group and identity of a scheme, prices that rest on the group simulated alone: nats per token."""
_NOTHING: SimulatedPrices = {}


def simulated_prices(simulation: Simulation | None, samples: Sequence[TokenizedSample]) -> SimulatedPrices:
    """Those of a card's simulation, where it was evaluated on these very samples."""
    if simulation is None or not same_samples(simulation, samples):
        return {}
    identities = {info.name: identity(info_scheme(info)) for info in simulation.schemes}
    return {
        (row.group, identities[row.scheme]): row.price
        for row in simulation.groups
        if row.price_simulated and row.price is not None and row.scheme in identities
    }


def same_samples(simulation: Simulation, samples: Sequence[TokenizedSample]) -> bool:
    """Whether a simulation was evaluated on these very samples."""
    of, tokens = simulation.evaluation, sum(len(sample.ids) for sample in samples)
    return (of.tokens, of.samples) == (tokens, [sample.id for sample in samples])


def find_candidates(
    opened: OpenedRecipe,
    offers: Offers,
    smoothable: Smoothable | None = None,
    *,
    simulated: SimulatedPrices = _NOTHING,
    stages: Stages = silent_stages,
) -> list[Candidate]:
    """Groups that the recipe quantizes, each with its options and their prices, in nats per token.

    smoothable: what is known of groups that could be smoothed, which are then offered it; None offers it to none.
    simulated: prices that are known better than gradients tell.

    A group of which only some members are quantized, or not all alike, is taken whole: serving engines run it as one.
    Raises RecipeError where a group must be quantized (`unquantized` is off) and cannot be, as the recipe has it.
    """
    loaded, profile = opened.loaded, opened.profile
    groups = quantized_groups(loaded.architecture.groups, opened.resolution, profile)
    offers = replace(offers, smoothing=smoothable is not None)
    options = {id(scheme): options_for(scheme, offers) for _, scheme in groups}
    schemes = _option_schemes(options)
    prices = _price(opened, groups, options, schemes, smoothable, stages)
    macs = [multiplications(loaded, profile, group) for group, _ in groups]
    candidates = [
        _candidate(
            loaded,
            group,
            count / sum(macs),
            options[id(scheme)],
            _prices(group, scheme, schemes, prices) | _known(group, options[id(scheme)], simulated),
        )
        for (group, scheme), count in zip(groups, macs, strict=True)
    ]
    stuck = [c.group.name for c in candidates if not any(option.is_named(AS_WRITTEN) for option in c.options)]
    if stuck and not offers.unquantized:
        raise RecipeError(
            f"`{stuck[0]}` cannot be quantized as written, and is not to be left unquantized",
            where=opened.name,
            hint="see `quantaudit gate` for why, and give this group another scheme; or allow it by --unquantized",
        )
    return candidates


Options = Mapping[int, Sequence[Option]]
"""By identity of a recipe's scheme, what groups under it are offered."""
OptionSchemes = Mapping[tuple[int, str], Scheme]
"""By identity of a recipe's scheme and name of an option that quantizes, the option's scheme."""


def _option_schemes(options: Options) -> OptionSchemes:
    return {
        (key, option.name): scheme_from_compressed_tensors(f"{index}.{option.name}", option.title, option.scheme)
        for index, (key, offered) in enumerate(options.items())
        for option in offered
        if option.scheme is not None
    }


def _price(
    opened: OpenedRecipe,
    groups: Sequence[tuple[Group, QuantizationScheme]],
    options: Options,
    schemes: OptionSchemes,
    smoothable: Smoothable | None,
    stages: Stages,
) -> PriceList:
    """Prices of every group under every option that it can have."""
    strengths = {
        schemes[key, option.name].name: option.strength
        for key, offered in options.items()
        for option in offered
        if option.strength is not None
    }
    ranges = {
        scheme.name: _ranges(
            scheme,
            [group for group, written in groups if id(written) == key],
            opened.profile,
            smoothable,
            strengths.get(scheme.name),
        )
        for (key, _), scheme in schemes.items()
        if scheme.static
    }
    only = {
        group.name: {
            schemes[id(written), option.name].name
            for option in options[id(written)]
            if option.scheme is not None and fits(option, _shapes(opened.loaded, group))
        }
        for group, written in groups
    }
    experiment = Experiment(
        model=opened.loaded.model,
        architecture=replace(opened.loaded.architecture, groups=tuple(group for group, _ in groups)),
        samples=opened.samples,
        weights=opened.loaded.weights,
        schemes=list(schemes.values()),
        ranges=InputRanges(by_scheme=ranges),
    )
    ticks = steps(experiment, only, price_alone={scheme.name for scheme in experiment.schemes})
    return price_groups(
        experiment,
        factors={}
        if smoothable is None
        else {name: smoothable.factors[strength] for name, strength in strengths.items()},
        only=only,
        progress=stages(PRICING, len(opened.samples) + ticks),
    )


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
    statistics = profile.whole(group.site)
    weights = sum(_weight(loaded, member).numel() for member in group.members)
    return 0.0 if statistics is None else statistics.tokens * weights / max(1, len(group.experts))


def uniform(candidates: Sequence[Candidate], option: str, otherwise: str | None = None) -> Choice | None:
    """The same option everywhere; None where some group has neither it nor `otherwise`."""
    choice = []
    for candidate in candidates:
        named = [name for name in (option, otherwise) if name and any(o.is_named(name) for o in candidate.options)]
        if not named:
            return None
        choice.append(next(index for index, offered in enumerate(candidate.options) if offered.is_named(named[0])))
    return choice


def changes(candidates: Sequence[Candidate], choice: Choice, profile: Profile) -> list[AdviceChange]:
    """Groups that are treated differently than written, those first that gain most."""
    rows = []
    for candidate, index in zip(candidates, choice, strict=True):
        option = candidate.options[index]
        if option.name != AS_WRITTEN:
            rows.append(
                AdviceChange(
                    group=candidate.group.name,
                    option=option.name,
                    title=option.title,
                    keeps=option.keeps_format,
                    price_before=candidate.prices[0] if candidate.options[0].name == AS_WRITTEN else None,
                    price_after=candidate.prices[index],
                    amax=_amax(profile, candidate.group),
                )
            )
    return sorted(rows, key=lambda row: (row.price_after or 0.0) - (row.price_before or float("inf")))


def _amax(profile: Profile, group: Group) -> float | None:
    statistics = profile.whole(group.site)
    return None if statistics is None else summary(statistics).amax


def _scheme(group: Group, resolution: Resolution) -> QuantizationScheme | None:
    """What a recipe does to most members of a group; None where it leaves them alone."""
    schemes = [resolution.schemes[member] for member in group.members if member in resolution.schemes]
    if not schemes:
        return None
    ((common, _),) = Counter(map(id, schemes)).most_common(1)
    return next(scheme for scheme in schemes if id(scheme) == common)


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
    schemes: OptionSchemes,
    prices: PriceList,
) -> dict[str, float]:
    """By option; those without a price, for want of a finite range, are left out. Unquantized costs nothing."""
    by_option = {option: prices[group.name, row.name] for (key, option), row in schemes.items() if key == id(scheme)}
    return {option: price for option, price in by_option.items() if price is not None} | {"unquantized": 0.0}


def _known(group: Group, offered: Sequence[Option], simulated: SimulatedPrices) -> dict[str, float]:
    """By option, prices that were simulated; what is smoothed first was not."""
    keys = {
        option.name: (group.name, identity(option.scheme))
        for option in offered
        if option.scheme is not None and option.strength is None
    }
    return {name: simulated[key] for name, key in keys.items() if key in simulated}


def _shapes(loaded: LoadedModel, group: Group) -> list[tuple[int, ...]]:
    return [tuple(_weight(loaded, member).shape) for member in group.members]


def _weight(loaded: LoadedModel, member: str) -> Any:
    return loaded.model.get_submodule(member).weight


def _ranges(
    scheme: Scheme, groups: Sequence[Group], profile: Profile, smoothable: Smoothable | None, strength: float | None
) -> dict[str, QParams | None]:
    """By group; under SmoothQuant only those that it reaches."""
    if scheme.input_activations is None or scheme.observer is None:
        return {}
    if smoothable is not None and strength is not None:
        return {
            group.name: smoothable.qparams(group, strength, scheme)
            for group in groups
            if group.name in smoothable.mappings
        }
    return {
        group.name: site_qparams(profile, group.site, scheme.input_activations, scheme.observer) for group in groups
    }
