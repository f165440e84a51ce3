"""QA510 to QA515: what the recipe does to the whole model, and whether that is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantaudit.card.judge.verdict import BROKEN, STOPPERS
from quantaudit.common.findings import Hit, rule
from quantaudit.common.rounding import limit_number, limit_percentage, percentage, significant
from quantaudit.gate.rules.phrases import gentler

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
    """Measured or estimated KL above `care` (an error; an estimate, if it is beyond doubt) or above `ready`."""
    score, limits = evidence.score, evidence.policy.kl
    if score.kl is None or evidence.incomplete:
        return
    margin = evidence.policy.gate.estimate.margin if score.source == "estimated" else 1.0
    fails = score.kl / margin > limits.care
    if not fails and score.kl <= limits.ready:
        return
    limit, word = (limits.care, "beyond") if score.kl > limits.care else (limits.ready, "beyond the comfortable")
    yield Hit(
        message=f"KL {significant(score.kl, *limits.both)} nats per token is {word} {limit_number(limit)} "
        f"({score.source}){_worst(evidence)}",
        value=score.kl,
        threshold=limit,
        severity="error" if fails else "warning",
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
    kept, limits = evidence.score.top1, evidence.policy.top1
    if kept is None or kept >= limits.ready or evidence.incomplete:
        return
    fails = kept < limits.care
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
    score, rules, limit = evidence.score, evidence.policy.gate.estimate, evidence.policy.kl.care
    if score.source != "estimated" or score.kl is None or evidence.incomplete:
        return
    close = score.kl / rules.margin <= limit < score.kl * rules.margin
    undecided = close or (not rules.accept and score.kl / rules.margin <= limit)
    detail = (
        f"too close to {limit_number(limit)} to decide"
        if close
        else "this policy wants it measured"
        if undecided
        else ""
    )
    yield Hit(
        message=f"KL {significant(score.kl, *evidence.policy.kl.both)} nats per token is estimated from prices, not "
        f"measured{detail and f': {detail}'}",
        value=score.kl,
        threshold=limit,
        severity="inconclusive" if undecided else "info",
        why=rules.reason,
        remedy=SIMULATE.format(recipe=evidence.recipe.path),
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
        yield Hit(message=score.note, remedy=SIMULATE.format(recipe=evidence.recipe.path))


@rule(
    "QA515",
    "The card itself cannot be trusted",
    severity="inconclusive",
    why="A model that was loaded wrongly, or is broken itself, makes every number of its card meaningless.",
    remedy="See the finding on the card, and make the card again.",
)
def stopped(evidence: Evidence) -> Iterator[Hit]:
    """The card has a finding that stops its own verdicts."""
    for finding in evidence.card.findings:
        if finding.code in {BROKEN, *STOPPERS}:
            yield Hit(message=f"{finding.code} on the card: {finding.message}", value=finding.value, why=finding.reason)


def _gentler(evidence: Evidence) -> str:
    """What would hurt less, by the schemes of the worst groups where these are known, else by all."""
    names = _worst_groups(evidence)
    groups = [group for group in evidence.assignments if group.name in names] or list(evidence.assignments)
    return (
        f"{gentler((scheme for group in groups for scheme in group.quantized), 'the worst groups')}; "
        "`quantaudit advise` finds the smallest such change."
    )


def _worst(evidence: Evidence) -> str:
    """The two groups of highest price, or damage, in words."""
    worst = _worst_groups(evidence)
    return f"; it is lost first at {' and '.join(f'`{name}`' for name in worst)}" if worst else ""


def _worst_groups(evidence: Evidence) -> list[str]:
    prices = [
        (group.row.price, group.name) for group in evidence.assignments if group.row is not None and group.row.price
    ]
    rows = prices or [
        (group.row.damage, group.name) for group in evidence.assignments if group.row is not None and group.row.damage
    ]
    return [name for _, name in sorted(rows, key=lambda row: -(row[0] or 0.0))[:2]]
