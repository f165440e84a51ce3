"""`quantaudit.gate`: a recipe and a card → whether the recipe is safe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.api.arguments import card_of, path_of, simulation_of

if TYPE_CHECKING:
    from quantaudit.card.schema import Card
    from quantaudit.gate.report import GateReport
    from quantaudit.simulate.records import Simulation


def gate(
    recipe: str | Path,
    card: Card | str | Path,
    *,
    policy: str | Path = "default",
    simulation: Simulation | str | Path | None = None,
    require_sealed: bool = False,
) -> GateReport:
    """Judge an llm-compressor recipe before anything is quantized, from the model's card alone.

    simulation: one made from the card's profile, whose scores go before the card's. require_sealed: refuse a card that
    was edited after it was written, or has no seal; `report.seal` says which. Raises RecipeError on a recipe that
    cannot be read, FormatError on a card, policy or simulation that does not fit.

    >>> report = quantaudit.gate("recipes/w8a8_static.yaml", "quantaudit-demo/card.json")
    >>> report.outcome in {"pass", "fail", "inconclusive"}
    True
    """
    from quantaudit.card.seal import check_sealed
    from quantaudit.policy import load_policy
    from quantaudit.recipe.parse import check_recipe

    path = path_of(recipe, "recipe")
    check_recipe(path)
    rules, read, simulated = load_policy(str(policy)), card_of(card), simulation_of(simulation)
    if require_sealed:
        check_sealed(read, "card" if read is card else str(card))
    from quantaudit.gate.run import gate as run

    return run(path, read, rules, simulated)
