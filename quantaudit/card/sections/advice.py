"""What a card says about advised recipes, in words and rows."""

from __future__ import annotations

from typing import Any

from quantaudit.card.schema import AdviceInfo, AdvicePoint
from quantaudit.common.rounding import significant


def advised(advice: AdviceInfo) -> str:
    """The advice in one or two sentences."""
    kept = f"{advice.advised.kept or 0.0:.0%} of the quantized Linears’ MACs keep the format of `{advice.recipe}`"
    if advice.advised.kl is None or advice.before.kl is None:
        return f"{kept}; its KL is not finite."
    # Rounded to what can be read, but each on its own side of the budget, which has the fewest digits for that.
    budget = advice.budget or 0.0
    goal = significant(budget, advice.before.kl, advice.advised.kl)
    before, after = (significant(kl, budget) for kl in (advice.before.kl, advice.advised.kl))
    text = (
        f"{kept}, and the KL goes from {before} to {after} "
        f"(goal: {advice.goal}, {goal}), simulated on {advice.tokens:,} tokens."
    )
    return text if advice.met else f"The goal was not met. {text}"


def points(advice: AdviceInfo) -> list[dict[str, Any]]:
    """Rows of the chart: every point with a KL above zero."""
    roles = [
        ("as written", [advice.before]),
        ("everywhere alike", advice.references),
        ("best mixed recipe", advice.curve),
        ("advised", [advice.advised]),
    ]
    return [_row(role, point) for role, found in roles for point in found if point.kl and point.kept is not None]


def _row(role: str, point: AdvicePoint) -> dict[str, Any]:
    return {
        "role": role,
        "name": point.name,
        "kept": point.kept,
        "kl": point.kl,
        "kept_text": f"{point.kept or 0.0:.1%}",
        "kl_text": f"{point.kl:.4f} ± {point.kl_stderr or 0.0:.1g}",
        "top1": "—" if point.top1 is None else f"{point.top1:.1%}",
        "what": ", ".join(f"{count} {option.replace('_', ' ')}" for option, count in point.options.items()),
    }
