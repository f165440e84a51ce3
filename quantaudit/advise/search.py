"""Choices among a recipe's candidates, simulated: what they keep, and their KL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from compressed_tensors.quantization import QuantizationScheme

from quantaudit.advise.candidates import Candidate, Choice
from quantaudit.advise.knapsack import least_lost
from quantaudit.advise.smoothquant import Smoothable
from quantaudit.card.schema import AdvicePoint
from quantaudit.common.progress import Stages
from quantaudit.common.ranks.team import deal
from quantaudit.model.sites import Group
from quantaudit.recipe.digest import scheme_digest
from quantaudit.recipe.modifiers.smoothquant import identity as smoothing_identity
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.simulate.cost import CHOOSING
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.quantized.recipe_plan import recipe_plan
from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.sensitivity.recipe_estimate import Simulated, fit_estimate

ADVISED = "advised"
"""Title of what is chosen."""
ROUNDS = 4
"""How often a choice is simulated and, where it breaks its budget, made again with a smaller one."""


@dataclass(frozen=True, slots=True)
class Search:
    """Choices among a recipe's candidates, simulated. smoothable: None where nothing is offered smoothing."""

    opened: OpenedRecipe
    candidates: Sequence[Candidate]
    smoothable: Smoothable | None
    stages: Stages

    def simulate(
        self,
        choices: Mapping[str, Choice],
        *,
        basis: Container[str] = (),
        simulated: Sequence[Simulated] = (),
        exact_calibration: bool = False,
    ) -> dict[str, tuple[AdvicePoint, RecipeRow]]:
        """Every choice simulated: a point of the curve, and the whole score. exact_calibration: as for `plan`.

        basis: titles of those choices on which the estimates of the others rest. simulated: sums of prices and KLs of
        earlier ones on which they rest too.
        """
        plans = [self.plan(title, choice, exact_calibration=exact_calibration) for title, choice in choices.items()]
        samples = self.opened.samples
        own = deal(samples, lambda sample: len(sample.ids))
        advance = self.stages(CHOOSING, len(plans) * len(own))
        loaded = self.opened.loaded
        rows = score_plans(loaded.model, samples, plans, weights=loaded.weights, progress=advance)
        pairs = {title: (self.total(choices[title]), row.kl) for title, row in zip(choices, rows, strict=True)}
        points = {}
        for title, row in zip(choices, rows, strict=True):
            others = [pair for other, pair in pairs.items() if other in basis and other != title]
            estimate = fit_estimate([*simulated, *others]).kl(pairs[title][0])
            points[title] = self.point(title, choices[title], row, estimate), row
        return points

    def confirmed(self, choice: Choice, simulated: tuple[AdvicePoint, RecipeRow]) -> tuple[AdvicePoint, RecipeRow]:
        """The simulation of a choice; where it smooths, another one, in which it is calibrated by itself.

        That takes a pass over the calibration split or more, so that it is for what is about to be chosen.
        """
        if not self.strengths(choice):
            return simulated
        ((point, row),) = self.simulate({simulated[0].name: choice}, exact_calibration=True).values()
        return point.model_copy(update={"estimated_kl": simulated[0].estimated_kl}), row

    def within(self, budget: float, simulated: Sequence[Simulated]) -> tuple[Choice, AdvicePoint, RecipeRow]:
        """The choice that keeps most with few changes within a simulated KL of `budget`, or the one with the least KL.

        simulated: sums of prices and KLs of other choices, on which estimates rest. A choice that breaks the budget is
        made again with as much less as it was over, until that is less than the cheapest choice, where nothing may be
        left unquantized. What is returned is `confirmed`.
        """
        items = [candidate.item_with_changes for candidate in self.candidates]
        cheapest_choice = [item.costs.index(min(item.costs)) for item in items]
        least = sum(min(item.costs) for item in items)
        allowed = min(budget, fit_estimate(simulated).total(budget))
        best: tuple[Choice, tuple[AdvicePoint, RecipeRow], bool] | None = None
        for _ in range(ROUNDS):
            choice = least_lost(items, allowed) if allowed > least else cheapest_choice
            found = self.simulate({ADVISED: choice}, simulated=simulated)[ADVISED]
            promising = _within(found[0], budget)
            if promising:
                found = self.confirmed(choice, found)
                if _within(found[0], budget):
                    return choice, *found
            if best is None or (found[0].kl or float("inf")) < (best[1][0].kl or float("inf")):
                best = choice, found, promising
            if allowed <= least:
                break
            allowed *= 0.97 * budget / found[0].kl if found[0].kl else 0.5
        assert best is not None
        choice, found, confirmed = best
        return choice, *(found if confirmed else self.confirmed(choice, found))

    def plan(self, title: str, choice: Choice, *, exact_calibration: bool = False) -> Plan:
        """A choice as a plan that can be simulated.

        exact_calibration: whether one that smooths is calibrated by itself, as `oneshot` will; else its ranges are
        those with every group smoothed that can be, which is the same but for rounding.
        """
        recipe, groups = self.resolved(title, choice), [candidate.group for candidate in self.candidates]
        model, profile = self.opened.loaded.model, self.opened.profile
        if exact_calibration or not recipe.smooth or self.smoothable is None:
            known = None if self.smoothable is None else self.smoothable.ranges
            samples = self.opened.corpus.samples
            return recipe_plan(recipe, model, groups, profile, samples, ranges=known, stages=self.stages)
        plain = recipe_plan(replace(recipe, smooth=()), model, groups, profile)
        chosen = self.strengths(choice)
        ranges = {
            member: qparams
            for group in groups
            if group.name in chosen
            for qparams in [self.smoothable.qparams(group, chosen[group.name], plain.schemes[group.members[0]])]
            for member in group.members
        }
        steps = self.smoothable.calibrated(chosen)
        return replace(plain, qparams={**plain.qparams, **ranges}, smoothed=steps)

    def resolved(self, title: str, choice: Choice) -> ResolvedRecipe:
        """A choice as the recipe that it will be."""
        schemes = self.schemes(choice)
        smooth = () if self.smoothable is None else self.smoothable.smooth(self.strengths(choice))
        return ResolvedRecipe(
            name=title, schemes=schemes, digest=scheme_digest(schemes, map(smoothing_identity, smooth)), smooth=smooth
        )

    def strengths(self, choice: Choice) -> dict[str, float]:
        """By group name, of those that are smoothed."""
        return {
            candidate.group.name: strength
            for candidate, index in zip(self.candidates, choice, strict=True)
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
            for candidate, index in zip(self.candidates, choice, strict=True)
        }

    def total(self, choice: Choice) -> float:
        """Sum of the prices of a choice, nats per token."""
        return sum(candidate.prices[index] for candidate, index in zip(self.candidates, choice, strict=True))

    def point(self, title: str, choice: Choice, row: RecipeRow, estimate: float) -> AdvicePoint:
        """One point of the curve: what a choice keeps (share of MACs), its estimated KL, and its simulated score."""
        picked = [(candidate, candidate.options[i]) for candidate, i in zip(self.candidates, choice, strict=True)]
        return AdvicePoint(
            name=title,
            kept=sum(candidate.share for candidate, option in picked if option.keeps_format),
            estimated_kl=estimate,
            kl=row.kl,
            kl_stderr=row.kl_stderr,
            top1=row.top1,
            options=dict(Counter(option.name for _, option in picked)),
        )


def _within(point: AdvicePoint, budget: float) -> bool:
    return point.kl is not None and point.kl <= budget
