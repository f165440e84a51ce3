"""A better recipe: the fewest MACs that leave the recipe's format, for a KL that a user accepts.

Every option of every fused group is priced; a knapsack chooses among sums of prices; what it chooses is simulated
before it is advised, and corrected where the estimate was too low (`search`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compressed_tensors.quantization import QuantizationScheme

from quantaudit.advise.candidates import (
    CHANGE,
    Candidate,
    Choice,
    changes,
    find_candidates,
    quantized_groups,
    same_samples,
    simulated_prices,
    uniform,
)
from quantaudit.advise.goal import REFERENCES, Goal, Offers
from quantaudit.advise.knapsack import cheapest
from quantaudit.advise.options import AS_WRITTEN, STRENGTHS, options_for
from quantaudit.advise.search import Search
from quantaudit.advise.smoothquant import Smoothable, find_smoothable
from quantaudit.card.schema import AdviceInfo, AdvicePoint, Card
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.errors import RecipeError, UsageError
from quantaudit.model.sites import Group
from quantaudit.recipe.resolved import SmoothQuant
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.simulate.records import RecipeRow, Simulation

SHARES = (0.95, 0.85, 0.75, 0.6, 0.5)
"""Shares of MACs kept at which the curve is drawn."""
WRITTEN = "as written"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A recipe that is advised, with all that was simulated on the way to it.

    schemes: by module path, of every module that it quantizes; groups: the same by fused group. smooth: what is done to
    norms and weights before. row: its score, with the digest of all that, by which a gate recognizes the recipe.
    unmeasured: modules that the original quantizes and this one does not, as nothing is known of their inputs.
    """

    info: AdviceInfo
    schemes: dict[str, QuantizationScheme]
    groups: dict[str, tuple[Group, QuantizationScheme | None]]
    smooth: tuple[SmoothQuant, ...]
    row: RecipeRow
    unmeasured: tuple[str, ...]


def advise(
    opened: OpenedRecipe,
    goal: Goal,
    offers: Offers | None = None,
    *,
    simulation: Simulation | None = None,
    stages: Stages = silent_stages,
) -> Advice:
    """The recipe that keeps most MACs in their format within the goal, and the curve of what else there is.

    simulation: the card's, whose prices of groups simulated alone are taken over where it is of the same samples, and
    whose schemes a goal may name.
    Where smoothing is offered, the profile's calibration split is run three times, and three times more for every
    advised choice that smooths. Raises RecipeError where the recipe does what cannot be simulated, UsageError where it
    has no alternative, and the card no scheme, that the goal names.
    """
    offers = offers or Offers()
    _check(opened)
    scheme_kl = _scheme_kl(goal, simulation, opened)
    _check_alternative(goal, opened.resolution.schemes.values())
    smoothable = _smoothable(opened, offers, stages) if offers.smoothing else None
    simulated = simulated_prices(simulation, opened.samples)
    candidates = find_candidates(opened, offers, smoothable, simulated=simulated, stages=stages)
    if not candidates:
        raise RecipeError("quantizes nothing that was measured", where=opened.name, hint="see `quantaudit gate`")
    if all(len(candidate.options) == 1 for candidate in candidates):
        raise RecipeError(
            "has no alternative on offer: it quantizes weights alone, or to formats without a finer one",
            where=opened.name,
            hint="--unquantized offers to leave groups in the original's format",
        )
    search = Search(opened, candidates, smoothable, stages)
    choices = _choices(candidates)
    tried = search.simulate(choices.all, basis={WRITTEN, *choices.references})
    points = {title: point for title, (point, _) in tried.items()}
    budget = goal.max_kl if scheme_kl is None else scheme_kl
    if budget is None:
        budget = _reference_kl(goal, points, opened.name)
    pairs = [(search.total(choice), points[title].kl) for title, choice in choices.all.items()]
    chosen, advised, row = search.within(budget, pairs)
    # Prices may rule out what was simulated already and is better, such as the recipe as written.
    for title, point in points.items():
        if _better(point, advised, budget):
            confirmed, confirmed_row = search.confirmed(choices.all[title], tried[title])
            if _better(confirmed, advised, budget):
                chosen, row = choices.all[title], confirmed_row
                advised = confirmed.model_copy(update={"name": advised.name})
    info = AdviceInfo(
        recipe=opened.name,
        goal=str(goal),
        budget=budget,
        met=advised.kl is not None and advised.kl <= budget,
        tokens=sum(len(sample.ids) for sample in opened.samples),
        before=points[WRITTEN],
        references=[points[title] for title in choices.references],
        curve=[points[title] for title in choices.curve],
        advised=advised,
        changes=changes(candidates, chosen, opened.profile),
    )
    measured = {member for candidate in candidates for member in candidate.group.members}
    return Advice(
        info=info,
        schemes=search.schemes(chosen),
        groups=search.groups(chosen),
        smooth=search.resolved("", chosen).smooth,
        row=row,
        unmeasured=tuple(name for name in opened.resolution.schemes if name not in measured),
    )


def with_advice(card: Card, advice: Advice, name: str) -> Card:
    """The card with advice, in place of earlier advice of the same recipe and goal.

    name: of the advised recipe, under which its score joins the card's simulation.
    """
    key = (advice.info.recipe, advice.info.goal)
    others = [row for row in card.advice if (row.recipe, row.goal) != key]
    simulation = card.simulation
    if simulation is not None:
        schemes = {scheme.name for scheme in simulation.schemes}
        titled = advice.row.model_copy(update={"title": f"recipe {name}"})
        simulation = simulation.with_recipe(titled, f"{name} advised" if name in schemes else name)
    return card.model_copy(update={"advice": [*others, advice.info], "simulation": simulation})


def _check(opened: OpenedRecipe) -> None:
    """Raises RecipeError where a recipe does what no price or simulation holds."""
    if opened.resolution.unsimulated:
        raise RecipeError(
            f"cannot be advised on: {opened.resolution.unsimulated[0]}",
            where=opened.name,
            hint="advise on the recipe without it; what it gains comes on top",
        )
    if opened.resolution.smoothed:
        raise RecipeError(
            "cannot be advised on: it smooths, and prices are of the unsmoothed model",
            where=opened.name,
            hint="advise on the recipe without SmoothQuantModifier, which is offered where it reaches",
        )


def _check_alternative(goal: Goal, schemes: Iterable[QuantizationScheme]) -> None:
    """Raises UsageError where a recipe's schemes have no such alternative as the goal names."""
    name = goal.as_good_as
    if name not in REFERENCES:
        return
    for scheme in {id(scheme): scheme for scheme in schemes}.values():
        if not any(option.is_named(name) for option in options_for(scheme, Offers())):
            raise UsageError(
                f"inputs that this recipe leaves alone, or quantizes to another format than 8 bits, have no "
                f"alternative `{name}`",
                where="--as-good-as",
                hint="give --max-kl, such as --max-kl 0.05",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """What is simulated before anything is chosen, by title: references are uniform, the curve keeps ever less."""

    written: Choice
    references: Mapping[str, Choice]
    curve: Mapping[str, Choice]

    @property
    def all(self) -> dict[str, Choice]:
        return {WRITTEN: self.written, **self.references, **self.curve}


def _choices(candidates: Sequence[Candidate]) -> _Choices:
    items = [candidate.item for candidate in candidates]
    unavoidable = sum(min(item.lost_macs) for item in items)
    written = uniform(candidates, AS_WRITTEN, otherwise="unquantized")
    assert written is not None, "candidates are refused where one has neither"
    references = {option: uniform(candidates, option) for option in REFERENCES}
    return _Choices(
        written=written,
        references={everywhere(option): choice for option, choice in references.items() if choice is not None},
        curve={f"{share:.0%} kept": cheapest(items, 1 - share) for share in SHARES if unavoidable <= 1 - share},
    )


def everywhere(option: str) -> str:
    """Title of the choice that gives every group one option."""
    return f"{option} everywhere"


def _scheme_kl(goal: Goal, simulation: Simulation | None, opened: OpenedRecipe) -> float | None:
    """That of the scheme that a goal names, on the tokens that advice is simulated on; None where it names none."""
    kl = goal.scheme_kl(simulation)
    if kl is not None and simulation is not None and not same_samples(simulation, opened.samples):
        raise UsageError(
            "the card has its KL on other evaluation tokens than these",
            where=f"--as-good-as {goal.as_good_as}",
            hint="leave --evaluation-tokens and --corpus as the card was made with, or give --max-kl",
        )
    return kl


def _reference_kl(goal: Goal, points: Mapping[str, AdvicePoint], recipe: str) -> float:
    """That of the alternative that a goal names, everywhere."""
    reference = points.get(everywhere(goal.as_good_as or ""))
    if reference is None:
        raise UsageError(
            f"this recipe has no alternative `{goal.as_good_as}`", where="--as-good-as", hint="give --max-kl"
        )
    if reference.kl is None:
        raise RecipeError("its reference is not finite", where=recipe, hint="give --max-kl")
    return reference.kl


def _smoothable(opened: OpenedRecipe, offers: Offers, stages: Stages) -> Smoothable | None:
    """What SmoothQuant would make of groups with static inputs that it reaches; None where it reaches none."""
    groups = [
        group
        for group, scheme in quantized_groups(opened.loaded.architecture.groups, opened.resolution, opened.profile)
        if any(option.strength is not None for option in options_for(scheme, offers))
    ]
    return find_smoothable(opened, groups, STRENGTHS, stages)


def _better(point: AdvicePoint, than: AdvicePoint, budget: float) -> bool:
    """Within the budget: more MACs kept and fewer changes, to the millionth, then a lower KL. Beyond: the lower KL."""

    def rank(one: AdvicePoint) -> tuple[bool, float, float]:
        kl = math.inf if one.kl is None else one.kl
        changed = sum(count for option, count in one.options.items() if option != AS_WRITTEN)
        return kl <= budget, round((one.kept or 0.0) - CHANGE * changed, 6) if kl <= budget else 0.0, -kl

    return rank(point) > rank(than)
