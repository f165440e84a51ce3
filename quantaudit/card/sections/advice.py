"""What a card says about advised recipes, in words."""

from __future__ import annotations

from quantaudit.card.schema import AdviceInfo
from quantaudit.card.text import counted
from quantaudit.common.rounding import significant


def advised(advice: AdviceInfo) -> str:
    """The advice in one or two sentences."""
    kept = f"{advice.advised.kept or 0.0:.0%} of the quantized Linears’ MACs keep the format of `{advice.recipe}`"
    if advice.advised.kl is None or advice.before.kl is None:
        return f"{kept}; its KL is not finite."
    # Rounded to what can be read, but each on its own side of the budget, which has the fewest digits for that.
    budget = advice.budget or 0.0
    goal = significant(budget, advice.before.kl, advice.advised.kl, zeros=False)
    before, after = (significant(kl, budget) for kl in (advice.before.kl, advice.advised.kl))
    text = (
        f"{kept}, and the KL goes from {before} to {after} "
        f"(goal: {advice.goal}, {goal}), simulated on {counted(advice.tokens, 'token')}."
    )
    return text if advice.met else f"The goal was not met. {text}"
