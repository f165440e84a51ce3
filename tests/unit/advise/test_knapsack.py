"""The choice of options against brute force over all of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from quantaudit.advise.knapsack import Item, cheapest, least_lost
from quantaudit.errors import RecipeError


def random_items(seed: int, groups: int = 6, options: int = 4) -> list[Item]:
    """The first option loses nothing, the last costs nothing, as menus have it."""
    generator = np.random.default_rng(seed)
    items = []
    for _ in range(groups):
        costs = generator.lognormal(-5, 2, options)
        lost_macs = generator.uniform(0, 1 / groups, options)
        costs[-1], lost_macs[0] = 0.0, 0.0
        items.append(Item(costs=tuple(map(float, costs)), lost_macs=tuple(map(float, lost_macs))))
    return items


def total(items: list[Item], choice: list[int], part: str) -> float:
    return sum(getattr(item, part)[index] for item, index in zip(items, choice, strict=True))


def brute_force(items: list[Item], minimised: str, limited: str, limit: float) -> float:
    choices = (list(choice) for choice in product(*(range(len(item.costs)) for item in items)))
    return min(total(items, c, minimised) for c in choices if total(items, c, limited) <= limit)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [0.0, 0.1, 0.4, 1.0])
def test_least_cost_within_a_share_of_losses_is_that_of_brute_force(seed: int, limit: float) -> None:
    items = random_items(seed)
    choice = cheapest(items, limit)
    assert total(items, choice, "lost_macs") <= limit + 1e-9
    assert total(items, choice, "costs") == pytest.approx(brute_force(items, "costs", "lost_macs", limit), rel=2e-4)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [1e-4, 0.003, 0.02, 1.0])
def test_least_loss_within_a_budget_is_that_of_brute_force(seed: int, budget: float) -> None:
    items = random_items(seed)
    choice = least_lost(items, budget)
    assert total(items, choice, "costs") <= budget * (1 + 1e-6)
    assert total(items, choice, "lost_macs") == pytest.approx(
        brute_force(items, "lost_macs", "costs", budget), rel=2e-4, abs=1e-7
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("groups", [1, 5])
def test_of_equal_choices_the_one_that_uses_less_of_the_limit_is_taken(order: tuple[int, ...], groups: int) -> None:
    options = [(0.3, 0.0), (0.3, 0.04), (0.5, 0.0)]
    costs, lost_macs = zip(*(options[i] for i in order), strict=True)
    assert cheapest([Item(costs=costs, lost_macs=lost_macs)] * groups, 0.5) == [order.index(0)] * groups
    assert least_lost([Item(costs=lost_macs, lost_macs=costs)] * groups, 0.5) == [order.index(0)] * groups


def test_a_limit_that_no_choice_meets_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no choice within the limit"):
        cheapest([Item(costs=(0.0,), lost_macs=(0.5,))], 0.25)
