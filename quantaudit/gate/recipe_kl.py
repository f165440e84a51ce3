"""What a recipe does to the whole model: measured for this very recipe, or estimated from prices, or unknown."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from quantaudit.card.text import counted
from quantaudit.gate.group_assignment import GroupAssignment
from quantaudit.gate.report import Score
from quantaudit.policy import Policy
from quantaudit.policy.evidence import enough, kl_interval, top1_interval
from quantaudit.provenance import CorpusInfo
from quantaudit.recipe.resolve import Resolution
from quantaudit.simulate.records import RecipeRow, Simulation
from quantaudit.simulate.scheme_info import rows_of
from quantaudit.simulate.sensitivity.recipe_estimate import (
    RecipeEstimate,
    estimate_factor,
    estimate_of,
)


def measured_row(resolution: Resolution, simulations: Sequence[Simulation]) -> RecipeRow | None:
    """The first row that was measured on the same assignment of schemes."""
    return next((row for simulation in simulations for row in rows_of(simulation, resolution.digest)), None)


def score(
    resolution: Resolution,
    assignments: Sequence[GroupAssignment],
    simulations: Sequence[Simulation],
    measured: RecipeRow | None,
    policy: Policy,
    text: CorpusInfo,
) -> Score:
    """What a recipe costs: measured; else estimated from prices; else why neither. Intervals are the policy's.

    text: how much of it there is for evaluation.
    """
    result = None if measured is None else _measured(measured, policy, text)
    if result is None:
        result = estimate(assignments, resolution.smoothed, estimate_of(simulations))
        result = _with_margin(result, simulations, policy)
    left_out = list(dict.fromkeys([*(change.reason for change in resolution.unsimulated), *result.left_out]))
    notes = [result.note, *(f"nearly: {text}" for text in result.approximate), *(f"but {text}" for text in left_out)]
    return result.model_copy(update={"note": "; ".join(notes), "left_out": left_out})


def _measured(row: RecipeRow, policy: Policy, text: CorpusInfo) -> Score:
    """The score of a simulated recipe."""
    kl, top1 = kl_interval(row, policy.evaluation), top1_interval(row, policy.evaluation)
    wanted = enough(policy, row, text)
    return Score(
        source="measured",
        kl=row.kl,
        kl_stderr=row.kl_stderr,
        kl_low=kl.low if kl else None,
        kl_high=kl.high if kl else None,
        top1=row.top1,
        top1_stderr=row.top1_stderr,
        top1_low=top1.low if top1 else None,
        top1_high=top1.high if top1 else None,
        tokens=row.tokens,
        samples=row.samples,
        tokens_to_decide=wanted.tokens if wanted else None,
        nonfinite=row.nonfinite,
        approximate=row.approximate,
        left_out=row.unsimulated,
        note=f"measured on {counted(row.tokens, 'evaluation token')} ({row.title})",
    )


def _with_margin(estimated: Score, simulations: Sequence[Simulation], policy: Policy) -> Score:
    """An estimate with its interval: of a recipe with groups of unknown price the lower end alone, of the others."""
    kl = estimated.kl if estimated.kl is not None else estimated.kl_low
    factor = estimate_factor(simulations, policy.evaluation.level, policy.gate.estimate.margin)
    if estimated.source == "measured" or kl is None or factor is None:
        return estimated
    evaluations = [simulation.evaluation for simulation in simulations]
    return estimated.model_copy(
        update={
            "kl_low": kl / factor,
            "kl_high": None if estimated.kl is None else kl * factor,
            "tokens": min(evaluation.tokens for evaluation in evaluations),
            "samples": min(len(evaluation.samples) for evaluation in evaluations),
        }
    )


def estimate(assignments: Sequence[GroupAssignment], smoothed: AbstractSet[str], estimated: RecipeEstimate) -> Score:
    """The KL that the prices of the groups sum to; each must be of the very scheme that the recipe gives the group.

    smoothed: modules that are changed before they are quantized, so that their groups' prices are of something else.
    estimated: from sums of prices to KL, in nats per token. Where some have no price, the KL of the others, as
    `kl_low`, is what the recipe costs at least.
    """
    if not assignments:
        exact = {"kl": 0.0, "kl_low": 0.0, "kl_high": 0.0, "top1": 1.0, "top1_low": 1.0, "top1_high": 1.0}
        return Score(source="measured", **exact, note="nothing is quantized")
    prices = {
        assignment.name: assignment.row.price
        if assignment.row is not None and smoothed.isdisjoint(assignment.members)
        else None
        for assignment in assignments
    }
    missing = [name for name, price in prices.items() if price is None]
    least = estimated.kl(sum(price for price in prices.values() if price is not None))
    if missing:
        why = "no price under this recipe's smoothing" if smoothed else "no price under this recipe's scheme"
        return Score(
            source="unknown",
            kl_low=least if least > 0 else None,
            note=f"{len(missing)} of {counted(len(prices), 'fused group')} have {why}, such as `{missing[0]}`",
        )
    return Score(
        source="estimated",
        kl=least,
        note=f"estimated from the prices of {counted(len(prices), 'fused group')}",
    )
