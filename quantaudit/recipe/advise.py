"""A better recipe: the fewest MACs that leave the recipe's format, for a KL that a user accepts.

Every option of every fused group is priced in one backward pass; a knapsack chooses among sums of prices; what it
chooses is simulated before it is advised, and corrected where the sum of prices was too kind.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from compressed_tensors.quantization import QuantizationScheme

from quantaudit.card.schema import AdviceInfo, AdvicePoint
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import RecipeError, UsageError
from quantaudit.model.load import LoadedModel
from quantaudit.model.sites import Group, discover
from quantaudit.profile import Profile
from quantaudit.progress import Stages, silent_stages
from quantaudit.recipe.candidates import Candidate, Choice, candidates, changes, quantized_groups, uniform
from quantaudit.recipe.digest import scheme_digest
from quantaudit.recipe.knapsack import cheapest, least_lost
from quantaudit.recipe.menu import STRENGTHS, menu
from quantaudit.recipe.resolve import Resolution
from quantaudit.recipe.smoothable import Smoothable, smoothable
from quantaudit.recipe.smoothing import identity as smoothing_identity
from quantaudit.simulate.logits import score_plans
from quantaudit.simulate.plan import Plan
from quantaudit.simulate.recipes import ResolvedRecipe, recipe_plan
from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.smooth import SmoothQuant

SHARES = (0.95, 0.85, 0.75, 0.6, 0.5)
"""Shares of MACs kept at which the curve is drawn."""
REFERENCES = ("dynamic",)
"""Options that are simulated everywhere, to compare with."""
WRITTEN = "as written"
ROUNDS = 4
"""How often a choice is simulated and, where it breaks its budget, made anew with a smaller one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What KL is acceptable, nats per token: a number, or that of a uniform alternative (`dynamic`)."""

    max_kl: float | None = None
    as_good_as: str | None = None

    def __post_init__(self) -> None:
        if (self.max_kl is None) == (self.as_good_as is None):
            raise UsageError("one goal is needed", where="--max-kl, --as-good-as", hint="--as-good-as dynamic")
        if self.max_kl is not None and not 0 < self.max_kl < math.inf:
            raise UsageError("a KL budget is above zero, and finite", where="--max-kl", hint="--max-kl 0.05")
        if self.as_good_as is not None and self.as_good_as not in REFERENCES:
            raise UsageError(
                "no such alternative", where=f"--as-good-as {self.as_good_as}", hint=f"one of {', '.join(REFERENCES)}"
            )

    def check(self, schemes: Iterable[QuantizationScheme]) -> None:
        """Raises UsageError where a recipe's schemes have no such alternative, before anything is priced."""
        name = self.as_good_as
        if name is None:
            return
        for scheme in {id(scheme): scheme for scheme in schemes}.values():
            if not any(option.answers(name) for option in menu(scheme)):
                raise UsageError(
                    f"inputs that this recipe leaves alone, or quantizes to another format than 8 bits, have no "
                    f"alternative `{name}`",
                    where="--as-good-as",
                    hint="give --max-kl, such as --max-kl 0.05",
                )

    def __str__(self) -> str:
        return f"KL at most {self.max_kl:g}" if self.max_kl is not None else f"as good as {self.as_good_as} everywhere"


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
    search = _Search(loaded, profile, samples, found, smoothing, calibration, stages)
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
    chosen, advised, row, met = search.within(budget, points.values())
    # Prices may rule out what was simulated already and is within the goal, such as the recipe as it is written.
    for title, point in points.items():
        if point.kl is not None and point.kl <= budget and (not met or _rank(point) > _rank(advised)):
            better = search.confirmed(known[title], simulated[title])
            if better[0].kl is not None and better[0].kl <= budget:
                chosen, advised, met = known[title], better[0].model_copy(update={"name": advised.name}), True
                row = better[1]
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
        for group, scheme in quantized_groups(discover(loaded.model).groups, resolution, profile)
        if any(option.strength is not None for option in menu(scheme, smoothing=True))
    ]
    return smoothable(loaded, profile, samples, groups, STRENGTHS, stages)


def _rank(point: AdvicePoint) -> tuple[float, float]:
    """More is better: MACs kept, to the millionth, then a lower KL."""
    return round(point.kept or 0.0, 6), -(math.inf if point.kl is None else point.kl)


@dataclass(frozen=True, slots=True)
class _Search:
    """Choices, simulated."""

    loaded: LoadedModel
    profile: Profile
    samples: Sequence[TokenizedSample]
    found: Sequence[Candidate]
    smoothing: Smoothable | None
    calibration: Sequence[TokenizedSample]
    stages: Stages

    def simulate(
        self, choices: Mapping[str, Choice], *, whole: bool = False
    ) -> dict[str, tuple[AdvicePoint, RecipeRow]]:
        """Every choice simulated: a point of the curve, and the whole score. whole: as for `plan`."""
        plans = [self.plan(title, choice, whole=whole) for title, choice in choices.items()]
        advance = self.stages("simulating choices", len(plans) * len(self.samples))
        rows = score_plans(self.loaded.model, self.samples, plans, progress=advance)
        return {
            title: (self.point(title, choice, row), row)
            for (title, choice), row in zip(choices.items(), rows, strict=True)
        }

    def confirmed(self, choice: Choice, found: tuple[AdvicePoint, RecipeRow]) -> tuple[AdvicePoint, RecipeRow]:
        """What was found of a choice; where it smooths, what is found when it is calibrated by itself."""
        if not self.strengths(choice):
            return found
        return self.simulate({found[0].name: choice}, whole=True)[found[0].name]

    def within(self, budget: float, known: Iterable[AdvicePoint]) -> tuple[Choice, AdvicePoint, RecipeRow, bool]:
        """The choice that keeps most within a simulated KL of `budget`, its point and row, and whether it is within.

        Prices are estimates: a choice that breaks the budget is made anew with as much less as it was over, until that
        is less than the cheapest choice, where nothing may be left unquantized.
        """
        items = [candidate.item for candidate in self.found]
        frugal = [item.costs.index(min(item.costs)) for item in items]
        least = sum(min(item.costs) for item in items)
        ratios = sorted(p.kl / p.estimated_kl for p in known if p.kl and p.estimated_kl and p.name.endswith("kept"))
        allowed = budget / max(1.0, ratios[len(ratios) // 2] if ratios else 1.0)
        best: tuple[Choice, AdvicePoint, RecipeRow] | None = None
        for _ in range(ROUNDS):
            choice = least_lost(items, allowed) if allowed > least else frugal
            point, row = self.simulate({"advised": choice}, whole=True)["advised"]
            if point.kl is not None and point.kl <= budget:
                return choice, point, row, True
            if best is None or (point.kl or float("inf")) < (best[1].kl or float("inf")):
                best = choice, point, row
            if allowed <= least:
                break
            allowed *= 0.97 * budget / point.kl if point.kl else 0.5
        assert best is not None
        return *best, False

    def plan(self, title: str, choice: Choice, *, whole: bool = False) -> Plan:
        """whole: whether a choice that smooths is calibrated by itself, as `oneshot` will; else ranges are those found
        with every group smoothed that can be, which is the same but for rounding.
        """
        recipe, groups = self.resolved(title, choice), [c.group for c in self.found]
        if whole or not recipe.smooth or self.smoothing is None:
            return recipe_plan(recipe, self.loaded.model, groups, self.profile, self.calibration, stages=self.stages)
        plain = recipe_plan(replace(recipe, smooth=()), self.loaded.model, groups, self.profile)
        chosen = self.strengths(choice)
        ranges = {
            member: found
            for group in groups
            if group.name in chosen
            for found in [self.smoothing.qparams(group, chosen[group.name], plain.schemes[group.members[0]])]
            for member in group.members
        }
        steps = self.smoothing.calibrated(chosen)
        return replace(plain, qparams={**plain.qparams, **ranges}, smoothed=steps)

    def resolved(self, title: str, choice: Choice) -> ResolvedRecipe:
        """A choice as the recipe that it will be."""
        schemes = self.schemes(choice)
        smooth = () if self.smoothing is None else self.smoothing.smooth(self.strengths(choice))
        return ResolvedRecipe(
            name=title, schemes=schemes, digest=scheme_digest(schemes, map(smoothing_identity, smooth)), smooth=smooth
        )

    def strengths(self, choice: Choice) -> dict[str, float]:
        """By group name, of those that are smoothed."""
        return {
            candidate.group.name: strength
            for candidate, index in zip(self.found, choice, strict=True)
            if (strength := candidate.options[index].strength) is not None
        }

    def schemes(self, choice: Choice) -> dict[str, QuantizationScheme]:
        """By module path; unquantized modules are left out."""
        return {
            member: scheme
            for group, scheme in self.groups(choice).values()
            if scheme is not None
            for member in group.members
        }

    def groups(self, choice: Choice) -> dict[str, tuple[Group, QuantizationScheme | None]]:
        """By group name, what a choice does to it."""
        return {
            candidate.group.name: (candidate.group, candidate.options[index].scheme)
            for candidate, index in zip(self.found, choice, strict=True)
        }

    def point(self, title: str, choice: Choice, row: RecipeRow) -> AdvicePoint:
        """One point of the curve: what a choice keeps (share of MACs), its prices' sum, and its simulated score."""
        picked = [(c, c.options[index], c.prices[index]) for c, index in zip(self.found, choice, strict=True)]
        return AdvicePoint(
            name=title,
            kept=sum(candidate.share for candidate, option, _ in picked if option.keeps),
            estimated_kl=sum(price for _, _, price in picked),
            kl=row.kl,
            kl_stderr=row.kl_stderr,
            top1=row.top1,
            options=dict(Counter(option.name for _, option, _ in picked)),
        )
