"""The verdict of a policy on one simulated recipe. A policy is data; this only applies it."""

from __future__ import annotations

from typing import Literal, cast, get_args

from quantaudit.common.rounding import limit_number, limit_percentage, percentage, significant
from quantaudit.policy.evidence import Outlook, enough, look, too_few
from quantaudit.policy.sections import Policy
from quantaudit.provenance import CorpusInfo
from quantaudit.simulate.records import RecipeRow
from quantaudit.stats.interval import Interval

Status = Literal["READY", "READY WITH CARE", "NOT READY", "INCONCLUSIVE"]
UNKNOWN_ERROR = "The standard error of its KL is not known, as of a single sample: simulate again, on several samples."


def judge(
    policy: Policy,
    recipe: RecipeRow | None,
    obstacles: list[str],
    *,
    broken: bool = False,
    corpus: CorpusInfo | None = None,
) -> tuple[Status, str]:
    """Status of one scheme and the reason in words. obstacles: why nothing can be concluded, if anything.

    broken: whether the unquantized model has non-finite activations, be it in a few samples only. corpus: which text
    there is. The worse of KL and top-1 decides, KL by its interval: one that crosses a limit leaves more
    than one status possible, and then none is given. Too little text can only show harm: an interval that lies
    beyond the limits is so wide for few samples that it says enough. What is non-finite is NOT READY even where much
    was not measured.
    """
    if broken:
        return "NOT READY", "The model itself produces NaN or infinite values before anything is quantized."
    if recipe is not None and recipe.nonfinite and recipe.kl is None:
        return "NOT READY", "The model produces NaN or infinite values under this scheme."
    if obstacles:
        return "INCONCLUSIVE", " ".join(obstacles)
    if recipe is not None and recipe.nonfinite:
        return "INCONCLUSIVE", "Some of its static ranges are missing: those tensors were simulated unquantized."
    if recipe is None or (recipe.kl is None and recipe.top1 is None):
        return "INCONCLUSIVE", "The whole model was not simulated under this scheme."
    if recipe.kl is None or recipe.top1 is None:
        return "INCONCLUSIVE", f"Its {'KL' if recipe.kl is None else 'share of top-1 tokens kept'} is not known."
    few, outlook = too_few(recipe.tokens, recipe.samples, policy.evaluation), look(policy, recipe)
    if few is not None and (outlook is None or not outlook.harmful):
        return "INCONCLUSIVE", few
    if outlook is None:
        return "INCONCLUSIVE", UNKNOWN_ERROR
    if outlook.best != outlook.worst:
        return "INCONCLUSIVE", undecided(policy, recipe, outlook, corpus)
    return _status(outlook.best), _reason(policy, recipe, outlook)


def passes(policy: Policy, recipe: RecipeRow) -> bool:
    """Whether a simulated recipe is READY, or READY WITH CARE, by its own unrounded numbers and their intervals."""
    status, _ = judge(policy, recipe, [])
    return status in ("READY", "READY WITH CARE")


def undecided(policy: Policy, recipe: RecipeRow, outlook: Outlook, corpus: CorpusInfo | None) -> str:
    """What a row leaves possible, by which limit, and how much more text would decide it."""
    parts = [f"that of the KL crosses {limit_number(limit)}" for limit in outlook.open_kl]
    statuses = " or ".join(_status(rank) for rank in range(outlook.best, outlook.worst + 1))
    wanted = enough(policy, recipe, corpus)
    return (
        f"{_scored(policy, recipe, outlook)}: {' and '.join(parts)}, so that it may be {statuses}."
        f"{'' if wanted is None else f' {wanted}'}"
    )


def _status(rank: int) -> Status:
    return cast(Status, get_args(Status)[rank])


def _reason(policy: Policy, recipe: RecipeRow, outlook: Outlook) -> str:
    status, kl = outlook.best, outlook.kl
    scored = _scored(policy, recipe, outlook)
    if status == 0:
        limits = f"{limit_number(policy.kl.ready)} and {limit_percentage(policy.top1.ready)}"
        return f"{scored}: within the limits of {limits}."
    passed = []
    if kl.low > policy.kl.both[status - 1]:
        passed.append(f"KL above {limit_number(policy.kl.both[status - 1])}")
    if recipe.top1 is not None and recipe.top1 < policy.top1.both[status - 1]:
        passed.append(f"top-1 below {limit_percentage(policy.top1.both[status - 1])}")
    return f"{scored}: {' and '.join(passed)}."


def _scored(policy: Policy, recipe: RecipeRow, outlook: Outlook) -> str:
    kl, top1 = scores(policy, recipe)
    return (
        f"KL {kl} nats per token and {top1} of top-1 tokens kept ({limit_percentage(policy.evaluation.level)} "
        f"intervals {kl_range(policy, outlook.kl)} and {top1_range(policy, outlook.top1)})"
    )


def scores(policy: Policy, recipe: RecipeRow) -> tuple[str, str]:
    """KL and top-1 of a row in which both are known, rounded but on their own side of every limit of the policy."""
    return (
        significant(recipe.kl or 0.0, *policy.kl.both),
        percentage(recipe.top1 or 0.0, *policy.top1.both, digits=0),
    )


def kl_range(policy: Policy, interval: Interval) -> str:
    """The ends of an interval of a KL, each on its own side of every limit."""
    return " to ".join(significant(end, *policy.kl.both) for end in (interval.low, interval.high))


def top1_range(policy: Policy, interval: Interval) -> str:
    """The ends of an interval of a share."""
    return " to ".join(percentage(end, *policy.top1.both, digits=0) for end in (interval.low, interval.high))
