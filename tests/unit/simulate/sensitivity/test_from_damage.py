"""Damage mapped to KL: the curve recovers a known law, its intervals hold, and the floor is taken off once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.simulate.logits.rounding_floor import RoundingFloor
from quantaudit.simulate.records import GroupRow
from quantaudit.simulate.sensitivity.from_damage import ANCHORS, FEWEST, anchors, fit_damage, prices_on_curve

NO_FLOOR = RoundingFloor(depths=(0,), kl=(0.0,))


def row(damage: float | None, layer: int | None = 0, name: str = "g") -> GroupRow:
    return GroupRow(
        group=name, projection="p", members=[name], layer=layer, scheme="s", damage=damage,
        damage_weights_only=None, price=None,
    )  # fmt: skip


def simulated(rows: Sequence[GroupRow], kl: Mapping[str, float | None]) -> list[GroupRow]:
    """The rows with the KL of groups simulated alone, by group name."""
    return [r.model_copy(update={"kl": kl.get(r.group)}) for r in rows]


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
    rows = [row(float(d), name=f"g{i}") for i, d in enumerate(np.geomspace(1e-4, 0.1, 60))]
    found = prices_on_curve(simulated(rows, {r.group: law(r.damage or 0) for r in anchors(rows)}), NO_FLOOR)
    for made in found:
        assert made.damage is not None
        assert made.price is not None
        assert made.price == pytest.approx(law(made.damage), rel=0.05)
        assert made.price_low is not None
        assert made.price_high is not None
        assert made.price_low < made.price < made.price_high


def test_intervals_hold_about_as_often_as_they_say() -> None:
    """Groups scatter about the law by a factor of 1.5; a 95 % interval must hold nearly all of them."""
    generator, held, count = np.random.default_rng(0), 0, 0
    for _ in range(40):
        damage = np.exp(generator.uniform(math.log(1e-4), math.log(0.1), 60))
        kl = {f"g{i}": law(d) * math.exp(0.4 * generator.standard_normal()) for i, d in enumerate(damage)}
        rows = [row(float(d), name=f"g{i}") for i, d in enumerate(damage)]
        chosen = {r.group for r in anchors(rows)}
        for made in prices_on_curve(simulated(rows, {name: kl[name] for name in chosen}), NO_FLOOR):
            if made.group not in chosen:
                assert made.price_low is not None
                assert made.price_high is not None
                held += made.price_low <= kl[made.group] <= made.price_high
                count += 1
    assert 0.9 <= held / count <= 0.995


def test_anchors_span_the_damage_and_are_few() -> None:
    rows = [row(float(d), name=f"g{i}") for i, d in enumerate(np.geomspace(1e-5, 1, 200))]
    chosen = anchors([*rows, row(None), row(0.0)])
    assert len(chosen) == ANCHORS
    assert {chosen[0].damage, chosen[-1].damage} == {rows[0].damage, rows[-1].damage}
    assert anchors([row(None)]) == []


def test_the_floor_is_no_part_of_a_price() -> None:
    rows = [row(float(d), layer=i % 3, name=f"g{i}") for i, d in enumerate(np.geomspace(1e-4, 0.1, 30))]
    floor = RoundingFloor(depths=(0, 2), kl=(0.002, 0.001))

    kl = {r.group: (r.damage or 0) + floor.at(r.layer or 0) for r in anchors(rows)}
    found = prices_on_curve(simulated(rows, kl), floor)
    worst = found[-1]
    assert worst.price == pytest.approx(0.1, rel=0.01)
    assert sum(made.price or 0 for made in found) == pytest.approx(sum(r.damage or 0 for r in rows), rel=0.1)


def test_what_cannot_be_simulated_has_no_price() -> None:
    rows = [row(float(d), name=f"g{i}") for i, d in enumerate(np.geomspace(1e-4, 0.1, 20))]
    assert prices_on_curve(rows, NO_FLOOR) == rows
    few = simulated(rows, {r.group: 0.1 for r in rows[: FEWEST - 1]})
    assert prices_on_curve(few, NO_FLOOR) == few
    assert prices_on_curve([row(None)], NO_FLOOR) == [row(None)]
    known = simulated(rows, {r.group: r.damage for r in rows[::2]})
    mixed = prices_on_curve([*known, row(None), row(0.1, layer=None)], NO_FLOOR)
    assert [made.price for made in mixed[-2:]] == [None, None]
    assert all(made.price is not None for made in mixed[:-2])


def test_every_group_that_was_simulated_shapes_the_curve() -> None:
    """KL that bends between the anchors is met where more groups were simulated."""
    rows = [row(float(d), name=f"g{i}") for i, d in enumerate(np.geomspace(1e-4, 0.1, 60))]
    kl = {r.group: 1e-4 if (r.damage or 0) < 0.01 else 0.5 for r in rows}
    few = prices_on_curve(simulated(rows, {r.group: kl[r.group] for r in anchors(rows)}), NO_FLOOR)
    all_of_them = prices_on_curve(simulated(rows, kl), NO_FLOOR)
    assert [made.price for made in all_of_them] == pytest.approx(list(kl.values()), rel=1e-6)
    assert [made.price for made in few] != pytest.approx(list(kl.values()), rel=0.5)
