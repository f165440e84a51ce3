"""Allocations of schemes on a card: their bytes, their KL, and that no other one within the budget is better."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from quantaudit.card.schema import Card
from quantaudit.errors import FormatError, UsageError
from quantaudit.quant.weight_bytes import weight_bytes
from quantaudit.simulate.allocation.menu import Menu, menu_of
from quantaudit.simulate.allocation.solve import Limit, Point, frontier, point_of, size_of_bits, solve, uniform
from tests.priced_cards import priced


def menu(card: Card, **options: Any) -> Menu:
    assert card.simulation is not None
    return menu_of(card.simulation, card.model, **{"margin": 2.0, "unquantized": True, **options})


def by_hand(card: Card, point: Point) -> tuple[int, int]:
    """Bytes of all weights by their shapes, and how many of them are quantizable."""
    shapes = {info.name: info.weight_shape for info in card.model.modules if info.weight_shape}
    assert card.simulation is not None
    members = {row.group: row.members for row in card.simulation.groups}
    infos = {info.name: info for info in card.simulation.schemes}
    size = quantizable = 0
    for group, scheme in point.schemes.items():
        for member in members[group]:
            shape = shapes[member] or []
            count = shape[0] * shape[1]
            quantizable += count
            info = None if scheme is None else infos[scheme]
            activations = info is not None and info.input_activations is not None
            size += 2 * count if info is None else weight_bytes(shape, info.weights or {}, activations=activations)
    return size + 2 * (card.model.parameters - quantizable), quantizable


def test_a_point_has_the_bytes_of_its_schemes_and_the_estimate_of_its_prices() -> None:
    card = priced()
    choices = menu(card)
    prices = {(row.group, row.scheme): row.price or 0.0 for row in card.simulation.groups} if card.simulation else {}
    for point in frontier(choices):
        size, quantizable = by_hand(card, point)
        assert point.size == size
        assert point.bits == pytest.approx(8 * (size - 2 * (card.model.parameters - quantizable)) / quantizable)
        assert set(point.schemes) == {row.group for row in card.simulation.groups if row.layer is not None}  # type: ignore[union-attr]
        total = sum(prices[group, scheme] for group, scheme in point.schemes.items() if scheme is not None)
        assert point.price == pytest.approx(total)
        if point.source == "estimated":
            assert point.kl == pytest.approx(choices.estimate.kl(total))
            assert choices.factor is not None
            assert (point.kl_low, point.kl_high) == (
                pytest.approx(point.kl / choices.factor),
                pytest.approx(point.kl * choices.factor),
            )


def test_what_was_simulated_keeps_its_measured_kl() -> None:
    card = priced()
    point = uniform(menu(card), "nvfp4")
    assert point is not None
    row = next(row for row in card.simulation.recipes if row.name == "nvfp4")  # type: ignore[union-attr]
    assert (point.source, point.kl) == ("measured", row.kl)
    assert uniform(menu(card), "no such scheme") is None


@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_no_other_choice_within_a_budget_is_better(family: str) -> None:
    card = priced(family, seed=3)
    choices = menu(card)
    points = _sampled(choices)
    for bits in (4.6, 5.3, 7.0, 8.6, 12.0):
        limit = size_of_bits(choices, bits)
        best = solve(choices, Limit(max_size=limit))
        assert best.size <= limit
        assert best.price <= min((p.price for p in points if p.size <= limit), default=np.inf) * (1 + 1e-9)
        smallest = solve(choices, Limit(max_kl=best.kl))
        assert smallest.kl <= best.kl
        assert smallest.size <= min(point.size for point in [*points, best] if point.kl <= best.kl)


def _sampled(choices: Menu, count: int = 4000) -> list[Point]:
    rng = np.random.default_rng(0)
    return [point_of(choices, [int(rng.integers(len(u.schemes))) for u in choices.units]) for _ in range(count)]


def test_no_choice_can_be_undone_with_the_budget_still_held() -> None:
    choices = menu(priced(seed=5))
    for bits in np.linspace(4.5, 15, 12):
        limit = size_of_bits(choices, float(bits))
        point = solve(choices, Limit(max_size=limit))
        for unit in choices.units:
            index = unit.schemes.index(point.schemes[unit.groups[0]])
            for option in range(len(unit.schemes)):
                if point.size - unit.sizes[index] + unit.sizes[option] <= limit:
                    assert unit.prices[option] >= unit.prices[index]


def test_the_frontier_rises_in_size_and_falls_in_price_and_holds_what_solve_finds() -> None:
    choices = menu(priced(seed=1))
    points = frontier(choices)
    for smaller, larger in pairwise(points):
        assert smaller.size < larger.size
        assert smaller.price > larger.price
    for point in points:
        assert solve(choices, Limit(max_size=point.size)).price == pytest.approx(point.price)
    assert points[-1].kl == 0
    assert set(points[-1].schemes.values()) == {None}


def test_the_upper_end_of_the_interval_can_be_what_is_limited() -> None:
    choices = menu(priced(seed=2))
    sure, likely = solve(choices, Limit(max_kl_high=0.01)), solve(choices, Limit(max_kl=0.01))
    assert sure.kl_high is not None
    assert sure.kl_high <= 0.01
    assert likely.kl <= 0.01
    assert sure.size >= likely.size


def test_all_experts_of_a_layer_have_one_scheme_and_routers_none() -> None:
    choices = menu(priced("qwen3-moe"))
    tied = [unit for unit in choices.units if any(".experts." in group for group in unit.groups)]
    assert tied
    assert all({group.rpartition(".")[2] for group in unit.groups} == {"gate_up_proj", "down_proj"} for unit in tied)
    assert not any(path.endswith(".gate") for paths in choices.members.values() for path in paths)


def test_what_depends_on_the_order_of_samples_is_offered_on_request_only() -> None:
    card = priced()
    assert "int8_static:minmax" not in menu(card).schemes
    assert list(menu(card, schemes=["int8_static:minmax"]).schemes) == ["int8_static:minmax"]


def test_a_group_without_a_price_under_a_scheme_is_not_given_it() -> None:
    card = priced()
    assert card.simulation is not None
    group = card.simulation.groups[0].group
    rows = [
        row.model_copy(update={"price": None}) if row.group == group and row.scheme != "nvfp4" else row
        for row in card.simulation.groups
    ]
    choices = menu(card.model_copy(update={"simulation": card.simulation.model_copy(update={"groups": rows})}))
    unit = next(unit for unit in choices.units if group in unit.groups)
    assert unit.schemes == ("nvfp4", None)


def test_a_group_stays_unquantized_on_request_and_where_it_has_no_price() -> None:
    card = priced()
    assert card.simulation is not None
    group = card.simulation.groups[0].group
    rows = [row.model_copy(update={"price": None}) if row.group == group else row for row in card.simulation.groups]
    card = card.model_copy(update={"simulation": card.simulation.model_copy(update={"groups": rows})})
    for asked in (False, True):
        choices = menu(card, unquantized=asked)
        left = {unit.groups: None in unit.schemes for unit in choices.units}
        assert all(offered == (asked or group in groups) for groups, offered in left.items())
    assert solve(choices, Limit(max_size=size_of_bits(choices, 6.0))).schemes[group] is None


@pytest.mark.parametrize(
    ("options", "limit", "words"),
    [
        ({}, {"max_size": 10.0}, "the smallest has"),
        ({"unquantized": False}, {"max_kl": 1e-9}, "the least is"),
        ({"unquantized": False}, {"max_kl_high": 1e-9}, "the least is"),
    ],
)
def test_an_impossible_budget_says_what_is_possible(options: Any, limit: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        solve(menu(priced(), **options), Limit(**limit))


def test_a_card_without_prices_is_refused_and_so_is_an_empty_menu() -> None:
    card = priced()
    assert card.simulation is not None
    rows = [row.model_copy(update={"price": None}) for row in card.simulation.groups]
    with pytest.raises(FormatError, match="no fused group has a price"):
        menu(card.model_copy(update={"simulation": card.simulation.model_copy(update={"groups": rows})}))
    with pytest.raises(UsageError, match="no scheme to choose from"):
        menu(card, schemes=["mxfp4"])


def test_a_least_kl_without_an_interval_is_no_crash() -> None:
    """All groups in one scheme, as it was simulated: on one sample, which has no standard error."""
    card = priced()
    assert card.simulation is not None
    rows = [row.model_copy(update={"samples": 1, "kl_stderr": None}) for row in card.simulation.recipes]
    alone = card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": rows})})
    with pytest.raises(UsageError, match="the least is not known so surely"):
        solve(menu(alone, schemes=["nvfp4"], unquantized=False), Limit(max_kl_high=1e-9))
