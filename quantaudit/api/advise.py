"""`quantaudit.advise`: a recipe and the card of its model → a recipe that works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from quantaudit.advise.goal import Goal, Offers
from quantaudit.api.arguments import case_of, claimed_for, path_of, shown
from quantaudit.settings import CaseOptions

if TYPE_CHECKING:
    from quantaudit.pipeline.advise import AdvisedRecipe


def advise(
    recipe: str | Path,
    card: str | Path,
    *,
    out: str | Path | None = None,
    max_kl: float | None = None,
    as_good_as: str | None = None,
    offers: Offers = Offers(),
    memory_budget: str | None = None,
    progress: bool | None = None,
    **options: Unpack[CaseOptions],
) -> AdvisedRecipe:
    """Change as little of a recipe as a KL budget needs: other observers, smoothing, dynamic scales, or none.

    out: file to write; the advice is added to the card then. max_kl: acceptable KL, mean nats per token; as_good_as:
    `dynamic`, the default, or a scheme in all groups as the card simulated it, such as "FP8_DYNAMIC". offers: what may
    be done to a fused group. memory_budget: as for `measure`. options: the fields of `CaseSpec`. Raises RecipeError
    where the recipe does what cannot be simulated, and other QuantauditErrors.

    >>> advised = quantaudit.advise("recipes/w8a8_static.yaml", "quantaudit-demo/card.json", evaluation_tokens=64)
    >>> "QuantizationModifier" in advised.text
    True
    """
    from quantaudit.model.blockwise.memory import parse_size
    from quantaudit.pipeline.case import read_case

    memory = None if memory_budget is None else parse_size(memory_budget, "memory_budget")
    goal = Goal(max_kl=max_kl, as_good_as=as_good_as or (None if max_kl is not None else "dynamic"))
    case = case_of(recipe, card, dict(options))
    files = read_case(case)
    place = None if out is None else path_of(out, "out")
    with claimed_for(case, "out", place), shown(progress) as (stages, say):
        stages("starting", 0)
        from quantaudit.pipeline.advise import advise_case

        advised = advise_case(files, goal, offers, stages=stages, say=say, memory=memory)
        if place is not None:
            advised.write(place, case.card)
    return advised
