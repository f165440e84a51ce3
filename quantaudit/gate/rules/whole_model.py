"""QA510 to QA514, and QA516: what the recipe does to the whole model, and whether that is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantaudit.common.findings import Hit, rule
from quantaudit.common.outcome import GateSeverity
from quantaudit.common.rounding import limit_number, limit_percentage, percentage, significant
from quantaudit.gate.report import Score
from quantaudit.gate.rules.calibration import indivisible
from quantaudit.gate.rules.phrases import gentler
from quantaudit.policy import Policy
from quantaudit.policy.evidence import look, too_few
from quantaudit.policy.judge import UNKNOWN_ERROR
from quantaudit.policy.judge import undecided as open_verdict
from quantaudit.policy.sections import Ceiling
from quantaudit.provenance import CorpusInfo
from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.sensitivity.ranking import worst_first

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence

SIMULATE = (
    "Simulate this very recipe: `quantaudit simulate MODEL --profile P --recipe {recipe} --out S.json`, then "
    "`quantaudit gate {recipe} --card card.json --simulation S.json`."
)


@rule(
    "QA510",
    "The recipe's KL is beyond the policy",
    severity="error",
    why="A mean KL of k nats raises the loss on text that the model itself would write by k.",
    remedy="Quantize the worst groups in a gentler way, which depends on the scheme, or not at all; "
    "`quantaudit advise` finds the smallest such change.",
)
def kl(evidence: Evidence) -> Iterator[Hit]:
    """A KL whose whole interval is above `care` (an error) or above `ready`; measured, or estimated with its interval.

    Where some groups have no price, what the others cost at least.
    """
    score, limits = evidence.score, evidence.policy.kl
    # An estimate is held against `ready` as it is, unless that fails: its interval may be wider than limits are apart.
    strict = score.source == "measured" or evidence.policy.gate.fail_on == "warning"
    low, likely = score.kl_low, score.kl_low if strict else score.kl
    if score.source == "unknown":
        yield from _at_least(evidence)
        return
    if low is None or likely is None or likely <= limits.ready or evidence.incomplete:
        return
    fails = low > limits.care
    if thin(evidence) is not None and not fails:
        return
    limit, word = (limits.care, "beyond") if likely > limits.care else (limits.ready, "beyond the comfortable")
    yield Hit(
        message=f"KL {_kl(score, limits)} is {word} {limit_number(limit)} ({score.source}){_worst(evidence)}",
        value=score.kl,
        threshold=limit,
        severity="error" if fails else "warning",
        why=limits.reason,
        remedy=_gentler(evidence),
    )


def _at_least(evidence: Evidence) -> Iterator[Hit]:
    """A recipe of which some groups have no price, where the others alone are beyond `care`."""
    low, limits = evidence.score.kl_low, evidence.policy.kl
    if low is None or low <= limits.care or evidence.incomplete or thin(evidence) is not None:
        return
    yield Hit(
        message=f"KL is at least {significant(low, *limits.both)} nats per token, beyond {limit_number(limits.care)}, "
        f"by the groups that have a price ({evidence.score.note}){_worst(evidence)}",
        value=low,
        threshold=limits.care,
        severity="error",
        why=limits.reason,
        remedy=_gentler(evidence),
    )


@rule(
    "QA511",
    "Too many predicted tokens change",
    severity="error",
    why="Where greedy decoding picks another token, the text that follows is another one.",
    remedy="Quantize the worst groups in a gentler way, which depends on the scheme, or not at all; "
    "`quantaudit advise` finds the smallest such change.",
)
def top1(evidence: Evidence) -> Iterator[Hit]:
    """Measured top-1 agreement below `care` (an error) or below `ready` (a warning)."""
    score, limits = evidence.score, evidence.policy.top1
    kept, high = score.top1, score.top1_high
    if kept is None or high is None or kept >= limits.ready or evidence.incomplete:
        return
    fails = kept < limits.care
    if thin(evidence) is not None and high >= limits.care:
        return
    limit = limits.care if fails else limits.ready
    yield Hit(
        message=f"{percentage(kept, *limits.both)} of the most likely tokens are kept, less than "
        f"{limit_percentage(limit)}",
        value=kept,
        threshold=limit,
        severity="error" if fails else "warning",
        why=limits.reason,
        remedy=_gentler(evidence),
    )


@rule(
    "QA512",
    "The recipe breaks the model",
    severity="error",
    why="Under this recipe the model's outputs are NaN or infinite.",
    remedy="Quantize fewer modules, or in a gentler way, which depends on the scheme.",
)
def breaks(evidence: Evidence) -> Iterator[Hit]:
    """The simulated logits were not finite; inconclusive where only the range of some static input was not."""
    score = evidence.score
    if score.nonfinite and score.kl is None:
        yield Hit(
            message=f"logits turn NaN or infinite ({score.note})",
            remedy=f"{gentler(evidence.schemes_of_linears.values(), 'some of these modules')}.",
        )
    elif score.nonfinite:
        yield Hit(
            message=f"some static inputs have no finite range and were simulated unquantized ({score.note})",
            severity="inconclusive",
            why="What these inputs would do once quantized is in no number here.",
        )


@rule(
    "QA513",
    "The recipe's KL is an estimate",
    severity="info",
    why="Prices of single groups add up nearly, not exactly, and say nothing of top-1.",
    remedy=SIMULATE.format(recipe="R.yaml"),
)
def estimated(evidence: Evidence) -> Iterator[Hit]:
    """The KL comes from prices: information where that decides, inconclusive near the limit or where not accepted."""
    score, rules, limits = evidence.score, evidence.policy.gate.estimate, evidence.policy.kl
    if score.source != "estimated" or score.kl is None or evidence.incomplete:
        return
    limit = (
        limits.ready if evidence.policy.gate.fail_on == "warning" and not _beyond(score, limits.ready) else limits.care
    )
    few, beyond = thin(evidence), _beyond(score, limit)
    close = not beyond and (score.kl_high or math.inf) > limit
    undecided = close or (not beyond and (few is not None or not rules.accept))
    if few is not None and not beyond:
        detail = f": {few[0].lower()}{few[1:]}"
    elif close:
        detail = f": too close to {limit_number(limit)} to decide"
    else:
        detail = ": this policy wants it measured" if undecided else ""
    yield Hit(
        message=f"KL {_kl(score, limits)} is estimated from prices, not measured, and top-1 is not known{detail}",
        value=score.kl,
        threshold=limit,
        severity="inconclusive" if undecided else "info",
        why=rules.reason,
        remedy=_how_to_know(evidence),
    )


@rule(
    "QA514",
    "The recipe's KL is not known",
    severity="inconclusive",
    why="The card holds no simulation of this assignment of schemes, nor prices for all of its groups.",
    remedy=SIMULATE.format(recipe="R.yaml"),
)
def unknown(evidence: Evidence) -> Iterator[Hit]:
    """Neither measured nor estimated, or measured without a result."""
    score = evidence.score
    if evidence.resolution.schemes and score.kl is None and not score.nonfinite and not evidence.incomplete:
        yield Hit(message=score.note, remedy=_how_to_know(evidence))


def _how_to_know(evidence: Evidence) -> str:
    """The commands that simulate this recipe; what cannot be simulated has to be mended first."""
    if any(indivisible(evidence)):
        return "No simulation takes group sizes that do not divide a weight: mend what QA413 says first."
    return SIMULATE.format(recipe=evidence.recipe.path)


@rule(
    "QA516",
    "The measurement leaves more than one verdict possible",
    severity="inconclusive",
    why="A KL is a mean over samples of text, and other text gives another mean: a limit inside its interval may lie "
    "on either side of it.",
    remedy="Simulate on more evaluation tokens, `quantaudit simulate … --evaluation-tokens N`, and give the result as "
    "`--simulation`; give more samples of the text that the model is used on.",
)
def undecided(evidence: Evidence) -> Iterator[Hit]:
    """Too few tokens or samples, an unknown score or error, or an interval across a limit that decides the gate.

    Information where only `ready` is crossed and warnings do not fail.
    """
    row, score = evidence.measured, evidence.score
    if row is None or evidence.incomplete or (score.nonfinite and score.kl is None):
        return
    few, outlook = thin(evidence), look(evidence.policy, row)
    if outlook is not None and outlook.harmful:
        return
    text, severity = (few, INCONCLUSIVE) if few is not None else _left_open(row, evidence.policy, evidence.card.corpus)
    if text is not None:
        yield Hit(message=text, value=score.kl, severity=severity, why=evidence.policy.evaluation.reason)


INCONCLUSIVE: GateSeverity = "inconclusive"


def _left_open(row: RecipeRow, policy: Policy, text: CorpusInfo) -> tuple[str | None, GateSeverity]:
    """What a measured row leaves open, as a clause, and how grave that is; None where it decides."""
    outlook = look(policy, row)
    if row.kl is None:
        return None, INCONCLUSIVE
    if row.top1 is None:
        return "the share of top-1 tokens kept is not known", INCONCLUSIVE
    if outlook is None:
        return UNKNOWN_ERROR[:-1], INCONCLUSIVE
    if outlook.best == outlook.worst:
        return None, INCONCLUSIVE
    harmless = outlook.worst < len(policy.kl.both) and policy.gate.fail_on == "error"
    return open_verdict(policy, row, outlook, text)[:-1], "info" if harmless else INCONCLUSIVE


def thin(evidence: Evidence) -> str | None:
    """Why a score rests on too little text for any conclusion, as a clause; None where it does not."""
    score = evidence.score
    if score.tokens is None or score.samples is None:
        return None
    few = too_few(score.tokens, score.samples, evidence.policy.evaluation)
    return None if few is None else few[:-1]


def _beyond(score: Score, limit: float) -> bool:
    return score.kl_low is not None and score.kl_low > limit


def _kl(score: Score, limits: Ceiling) -> str:
    """`0.031 nats per token (0.027 to 0.034)`; without the interval where it is not known."""
    text = f"{significant(score.kl or 0.0, *limits.both)} nats per token"
    if score.kl_low is None or score.kl_high is None:
        return text
    return f"{text} ({significant(score.kl_low, *limits.both)} to {significant(score.kl_high, *limits.both)})"


def _gentler(evidence: Evidence) -> str:
    """What would hurt less, by the schemes of the worst groups where these are known, else by all."""
    names = _worst_groups(evidence)
    groups = [group for group in evidence.assignments if group.name in names] or list(evidence.assignments)
    return (
        f"{gentler((scheme for group in groups for scheme in group.quantized), 'the worst groups')}; "
        "`quantaudit advise` finds the smallest such change."
    )


def _worst(evidence: Evidence) -> str:
    """The two groups that hurt most, in words."""
    worst = _worst_groups(evidence)
    return f"; it is lost first at {' and '.join(f'`{name}`' for name in worst)}" if worst else ""


def _worst_groups(evidence: Evidence) -> list[str]:
    smoothed = evidence.resolution.smoothed
    as_priced = [row for row in evidence.rows if smoothed.isdisjoint(row.members)]
    return [row.group for row in worst_first(as_priced or evidence.rows)[:2]]
