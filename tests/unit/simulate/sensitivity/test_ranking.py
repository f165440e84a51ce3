"""One order of groups: by price wherever there is one, else by damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.model.groups import Group
from quantaudit.quant.schemes import INT8_STATIC
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.sensitivity.ranking import measure_of, shares, worst_first, worst_groups


def effect(name: str, damage: float | None, price: float | None = None) -> GroupEffect:
    group = Group(name=name, projection="p", layer=0, members=())
    return GroupEffect(group=group, scheme=INT8_STATIC, damage=damage, price=price)


def test_a_price_ranks_where_there_is_one_and_damage_where_none_is() -> None:
    priced = [effect("a", 0.9, 0.1), effect("b", 0.1, 0.3), effect("c", 5.0, None), effect("d", 0.0, 0.0)]
    assert [one.group.name for one in worst_first(priced)] == ["b", "a"]
    assert measure_of(priced) == "price"
    assert shares(worst_first(priced)) == pytest.approx([0.75, 0.25])
    unpriced = [effect("a", 0.9), effect("b", 0.1), effect("c", None)]
    assert [one.group.name for one in worst_first(unpriced)] == ["a", "b"]


@pytest.mark.parametrize("by", ["price", "damage"])
@given(st.lists(st.one_of(st.none(), st.floats(0, 1e3)), max_size=12), st.floats(0, 1))
def test_the_worst_groups_are_the_fewest_that_hold_the_share(by: str, values: list[float | None], share: float) -> None:
    effects = [effect(f"g{i}", **({"damage": value} if by == "damage" else {"damage": 1.0, "price": value or 0.0}))  # type: ignore[arg-type]
               for i, value in enumerate(values)]  # fmt: skip
    of = {e.group.name: value or 0.0 for e, value in zip(effects, values, strict=True)}
    chosen = [one.group.name for one in worst_groups(effects, share)]
    total = sum(of.values())
    held = [of[name] for name in chosen]
    assert held == sorted(held, reverse=True)
    assert sum(held) >= share * total * (1 - 1e-9)
    if chosen:
        assert sum(held[:-1]) < share * total * (1 + 1e-9)
        left = [value for name, value in of.items() if name not in chosen]
        assert all(value <= held[-1] for value in left)
