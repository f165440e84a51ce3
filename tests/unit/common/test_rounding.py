"""Whatever is shown next to a limit lies on the side of it that the value itself lies on."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantaudit.common.rounding import decimals, limit_number, limit_percentage, percentage, significant

SHARES = st.floats(0, 1)
NUMBERS = st.floats(1e-9, 1e9)


def side(value: Decimal, limit: float) -> int:
    other = Decimal(repr(limit))
    return (value > other) - (value < other)


@given(SHARES, st.lists(SHARES, max_size=3), st.integers(0, 3))
@example(0.7998, [0.8], 0)
@example(0.79999999999, [0.8], 1)
@example(0.57, [0.57], 0)
def test_a_percentage_does_not_cross_a_limit(share: float, limits: list[float], digits: int) -> None:
    text = percentage(share, *limits, digits=digits)
    shown = Decimal(text.removesuffix("%")) / 100
    assert [side(shown, limit) for limit in limits] == [side(Decimal(repr(share)), limit) for limit in limits]


@given(NUMBERS, st.lists(NUMBERS, max_size=3), st.integers(1, 4))
@example(0.0500000001, [0.05], 3)
def test_a_number_does_not_cross_a_limit(value: float, limits: list[float], digits: int) -> None:
    exact = [side(Decimal(repr(value)), limit) for limit in limits]
    for text in (significant(value, *limits, digits=digits), decimals(value, *limits, digits=digits)):
        assert [side(Decimal(text), limit) for limit in limits] == exact


@given(SHARES, st.floats(-0.5, 0.5))
def test_a_value_next_to_its_own_limit_is_told_from_it(limit: float, step: float) -> None:
    share = min(max(limit + step * 1e-9, 0.0), 1.0)
    assert (percentage(share, limit) == percentage(limit, limit)) == (share == limit)


@given(NUMBERS)
def test_without_a_limit_it_has_so_many_digits_zeros_among_them(value: float) -> None:
    text = significant(value, digits=3)
    assert Decimal(text) == Decimal(f"{value:.3g}")
    assert len(text.partition("e")[0].replace(".", "").lstrip("0")) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percentage(0.7998, 0.8, digits=0), "79.98%"),
        (percentage(0.7998, digits=0), "80%"),
        (percentage(0.8, 0.8, digits=0), "80%"),
        (percentage(0.95012, 0.95, digits=1), "95.01%"),
        (significant(0.05004, 0.05, digits=3), "0.05004"),
        (significant(0.05, 0.05, digits=3), "0.0500"),
        (significant(1.1, digits=3), "1.10"),
        (significant(155.2, digits=3), "155"),
        (significant(0.0), "0"),
        (decimals(1.9999, 2.0), "1.9999"),
        (limit_percentage(0.8), "80%"),
        (limit_percentage(0.995), "99.5%"),
        (limit_percentage(1.0), "100%"),
        (limit_number(0.05), "0.05"),
        (significant(float("nan"), 1.0), "nan"),
        (decimals(float("inf"), 1.0), "inf"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert text == expected
