"""Damage mapped to KL: the curve recovers a known law, its intervals hold, and the floor is taken off once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.model.sites import Group
from quantaudit.quant.schemes import INT8_STATIC
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.logits.rounding_floor import RoundingFloor
from quantaudit.simulate.sensitivity.from_damage import ANCHORS, FEWEST, anchors, fill_prices, fit_damage

FLAT_FLOOR = RoundingFloor(depths=(0,), kl=(0.0,))


def effect(damage: float | None, layer: int | None = 0, name: str = "g") -> GroupEffect:
    group = Group(name=name, projection="p", layer=layer, members=(name,))
    return GroupEffect(group=group, scheme=INT8_STATIC, damage=damage)


def priced(
    effects: Sequence[GroupEffect], kl: Mapping[str, float | None], floor: RoundingFloor = FLAT_FLOOR
) -> list[GroupEffect]:
    """Copies with prices, where some groups were simulated alone. kl: by group name."""
    copies = [replace(e, kl=kl.get(e.group.name)) for e in effects]
    fill_prices(copies, floor)
    return copies


def law(damage: float) -> float:
    return 3.0 * damage**1.2


@given(st.lists(st.floats(1e-6, 1.0), min_size=FEWEST, max_size=12, unique=True), st.integers(0, 99))
def test_the_curve_never_falls(damage: list[float], seed: int) -> None:
    kl = np.exp(np.random.default_rng(seed).standard_normal(len(damage))).tolist()
    curve = fit_damage(damage, kl)
    values = [curve.kl(x) for x in np.geomspace(1e-8, 10, 60)]
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(values))
    assert curve.kl(0) == 0
    assert curve.kl(max(damage) * 10) == pytest.approx(10 * curve.kl(max(damage)))


def test_a_monotone_law_is_met_at_the_anchors_and_nearly_between() -> None:
    effects = [effect(float(d), name=f"g{i}") for i, d in enumerate(np.geomspace(1e-4, 0.1, 60))]
    results = priced(effects, {e.group.name: law(e.damage or 0) for e in anchors(effects)})
    for result in results:
        assert result.damage is not None
        assert result.price is not None
        assert result.price == pytest.approx(law(result.damage), rel=0.05)
        assert result.price_low is not None
        assert result.price_high is not None
        assert result.price_low < result.price < result.price_high


def test_intervals_hold_about_as_often_as_they_say() -> None:
    """Groups scatter about the law by a factor of 1.5; a 95 % interval must hold nearly all of them."""
    generator, held, count = np.random.default_rng(0), 0, 0
    for _ in range(40):
        damage = np.exp(generator.uniform(math.log(1e-4), math.log(0.1), 60))
        kl = {f"g{i}": law(d) * math.exp(0.4 * generator.standard_normal()) for i, d in enumerate(damage)}
        effects = [effect(float(d), name=f"g{i}") for i, d in enumerate(damage)]
        chosen = {e.group.name for e in anchors(effects)}
        for result in priced(effects, {name: kl[name] for name in chosen}):
            if result.group.name not in chosen:
                assert result.price_low is not None
                assert result.price_high is not None
                held += result.price_low <= kl[result.group.name] <= result.price_high
                count += 1
    assert 0.9 <= held / count <= 0.995


def test_anchors_span_the_damage_and_are_few() -> None:
    effects = [effect(float(d), name=f"g{i}") for i, d in enumerate(np.geomspace(1e-5, 1, 200))]
    chosen = anchors([*effects, effect(None), effect(0.0)])
    assert len(chosen) == ANCHORS
    assert {chosen[0].damage, chosen[-1].damage} == {effects[0].damage, effects[-1].damage}
    assert anchors([effect(None)]) == []


def test_the_floor_is_no_part_of_a_price() -> None:
    effects = [effect(float(d), layer=i % 3, name=f"g{i}") for i, d in enumerate(np.geomspace(1e-4, 0.1, 30))]
    floor = RoundingFloor(depths=(0, 2), kl=(0.002, 0.001))

    kl = {e.group.name: (e.damage or 0) + floor.at(e.group.layer or 0) for e in anchors(effects)}
    results = priced(effects, kl, floor)
    worst = results[-1]
    assert worst.price == pytest.approx(0.1, rel=0.01)
    assert sum(result.price or 0 for result in results) == pytest.approx(sum(e.damage or 0 for e in effects), rel=0.1)


def test_what_cannot_be_simulated_has_no_price() -> None:
    effects = [effect(float(d), name=f"g{i}") for i, d in enumerate(np.geomspace(1e-4, 0.1, 20))]
    assert priced(effects, {}) == effects
    few = {e.group.name: 0.1 for e in effects[: FEWEST - 1]}
    assert priced(effects, few) == [replace(e, kl=few.get(e.group.name)) for e in effects]
    assert priced([effect(None)], {}) == [effect(None)]
    half = {e.group.name: e.damage for e in effects[::2]}
    mixed = priced([*effects, effect(None), effect(0.1, layer=None)], half)
    assert [result.price for result in mixed[-2:]] == [None, None]
    assert all(result.price is not None for result in mixed[:-2])


def test_every_group_that_was_simulated_shapes_the_curve() -> None:
    """KL that bends between the anchors is met where more groups were simulated."""
    effects = [effect(float(d), name=f"g{i}") for i, d in enumerate(np.geomspace(1e-4, 0.1, 60))]
    kl = {e.group.name: 1e-4 if (e.damage or 0) < 0.01 else 0.5 for e in effects}
    few = priced(effects, {e.group.name: kl[e.group.name] for e in anchors(effects)})
    all_of_them = priced(effects, kl)
    assert [result.price for result in all_of_them] == pytest.approx(list(kl.values()), rel=1e-6)
    assert [result.price for result in few] != pytest.approx(list(kl.values()), rel=0.5)
