"""A better recipe: the fewest MACs that leave the recipe's format, for a KL that a user accepts.

Every option of every fused group is priced; a knapsack chooses among sums of prices; what it chooses is simulated
before it is advised, and corrected where the sum of prices was too kind (`search`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressed_tensors.quantization import QuantizationScheme

from quantaudit.advise.candidates import candidates, changes, quantized_groups, uniform
from quantaudit.advise.goal import REFERENCES, Goal
from quantaudit.advise.knapsack import cheapest
from quantaudit.advise.options import STRENGTHS, menu
from quantaudit.advise.search import Search
from quantaudit.advise.smoothquant import Smoothable, smoothable
from quantaudit.card.schema import AdviceInfo, AdvicePoint
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import RecipeError, UsageError
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Group
from quantaudit.recipe.resolve import Resolution
from quantaudit.recipe.resolved import SmoothQuant
from quantaudit.simulate.records import RecipeRow

SHARES = (0.95, 0.85, 0.75, 0.6, 0.5)
"""Shares of MACs kept at which the curve is drawn."""
WRITTEN = "as written"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """schemes: by module path, of every module that the advised recipe quantizes; groups: the same by fused group.

    smooth: what is done to norms and weights before. row: its score, with the digest of all that, by which a gate knows
    the recipe again.
    unmeasured: modules that the recipe quantizes and the advised one does not, as nothing is known of their inputs.
    """

    info: AdviceInfo
    schemes: dict[str, QuantizationScheme]
    groups: dict[str, tuple[Group, QuantizationScheme | None]]
    smooth: tuple[SmoothQuant, ...]
    row: RecipeRow
    unmeasured: tuple[str, ...]


def advise(
    loaded: LoadedModel,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    resolution: Resolution,
    goal: Goal,
    *,
    name: str,
    moving_averages: bool = True,
    unquantized: bool = True,
    calibration: Sequence[TokenizedSample] = (),
    stages: Stages = silent_stages,
) -> Advice:
    """The recipe that keeps most MACs in their format within the goal, and the curve of what else there is.

    samples: the evaluation tokens. moving_averages, unquantized: what `menu` is to offer. calibration: the samples of
    the profile, for SmoothQuant to be offered where it reaches; their calibration split is run three times, and three
    times more for every advised choice that smooths. Raises RecipeError where the recipe does what cannot be simulated.
    """
    if resolution.unsimulated:
        raise RecipeError(
            f"cannot be advised on: {resolution.unsimulated[0]}",
            where=name,
            hint="advise on the recipe without it; what it gains comes on top",
        )
    if resolution.smoothed:
        raise RecipeError(
            "cannot be advised on: it smooths, and prices are of the model as it is",
            where=name,
            hint="advise on the recipe without SmoothQuantModifier, which is on the menu where it reaches",
        )
    goal.check(resolution.schemes.values())
    smoothing = _smoothing(loaded, profile, calibration, resolution, stages) if calibration else None
    found = candidates(
        loaded,
        profile,
        samples,
        resolution,
        moving_averages=moving_averages,
        unquantized=unquantized,
        smoothing=smoothing,
        stages=stages,
    )
    if not found:
        raise RecipeError("quantizes nothing that was measured", where=name, hint="see `quantaudit gate`")
    search = Search(loaded, profile, samples, found, smoothing, calibration, stages)
    items = [candidate.item for candidate in found]
    unavoidable = sum(min(item.losses) for item in items)
    choices = {WRITTEN: uniform(found, "as_written", otherwise="unquantized")}
    choices |= {f"{option} everywhere": uniform(found, option) for option in REFERENCES}
    choices |= {f"{share:.0%} kept": cheapest(items, 1 - share) for share in SHARES if unavoidable <= 1 - share}
    known = {title: choice for title, choice in choices.items() if choice is not None}
    simulated = search.simulate(known)
    points = {title: point for title, (point, _) in simulated.items()}
    budget = goal.max_kl
    if goal.as_good_as is not None:
        if f"{goal.as_good_as} everywhere" not in points:
            raise UsageError(
                f"this recipe has no alternative `{goal.as_good_as}`", where="--as-good-as", hint="give --max-kl"
            )
        budget = points[f"{goal.as_good_as} everywhere"].kl
    if budget is None:
        raise RecipeError("its reference is not finite", where=name, hint="give --max-kl")
    chosen, advised, row = search.within(budget, points.values())
    # Prices may rule out what was simulated already and is better, such as the recipe as it is written.
    for title, point in points.items():
        if _better(point, advised, budget):
            found_again, again = search.confirmed(known[title], simulated[title])
            if _better(found_again, advised, budget):
                chosen, row = known[title], again
                advised = found_again.model_copy(update={"name": advised.name})
    met = advised.kl is not None and advised.kl <= budget
    schemes, groups = search.schemes(chosen), search.groups(chosen)
    info = AdviceInfo(
        recipe=name,
        goal=str(goal),
        budget=budget,
        met=met,
        tokens=sum(len(sample.ids) for sample in samples),
        before=points[WRITTEN],
        references=[point for title, point in points.items() if title.endswith(" everywhere")],
        curve=[point for title, point in points.items() if title.endswith(" kept")],
        advised=advised,
        changes=changes(found, chosen, profile),
    )
    reached = {member for candidate in found for member in candidate.group.members}
    unmeasured = tuple(name for name in resolution.schemes if name not in reached)
    return Advice(
        info=info,
        schemes=schemes,
        groups=groups,
        smooth=search.resolved("", chosen).smooth,
        row=row,
        unmeasured=unmeasured,
    )


def _smoothing(
    loaded: LoadedModel,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    resolution: Resolution,
    stages: Stages,
) -> Smoothable | None:
    """What SmoothQuant would make of groups with static inputs that it reaches; None where it reaches none."""
    groups = [
        group
        for group, scheme in quantized_groups(loaded.architecture.groups, resolution, profile)
        if any(option.strength is not None for option in menu(scheme, smoothing=True))
    ]
    return smoothable(loaded, profile, samples, groups, STRENGTHS, stages)


def _better(point: AdvicePoint, than: AdvicePoint, budget: float) -> bool:
    """Within the budget: more MACs kept, to the millionth, then a lower KL. Beyond it: the lower KL."""

    def rank(one: AdvicePoint) -> tuple[bool, float, float]:
        kl = math.inf if one.kl is None else one.kl
        return kl <= budget, round(one.kept or 0.0, 6) if kl <= budget else 0.0, -kl

    return rank(point) > rank(than)
