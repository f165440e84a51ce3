"""The shape of a maximum: signs, concentration, tensors near it, the largest step."""

from __future__ import annotations

import pytest

from quantaudit.stats.maxima.shape import Highest, Step, largest_step, maximum_shape


def test_the_top_five_of_all_tensors() -> None:
    tensors = [Highest(tensor="a", values=[-8.0, -7.0, 1.0]), Highest(tensor="b", values=[-10.0, -2.0, -9.5])]
    shape = maximum_shape([*tensors, Highest(tensor="c", values=[9.0])], [1.0, 2.0])
    assert shape is not None
    assert shape.top == (-10.0, -9.5, 9.0, -8.0, -7.0)
    assert (shape.sign, shape.equal) == ("mixed", False)
    assert shape.concentration == pytest.approx(10 / 8.7)
    assert shape.decay == pytest.approx(0.7)
    assert shape.near == ("b", "c")
    assert shape.step == Step(layer=1, ratio=2.0)


def test_signs_and_equal_elements() -> None:
    for value, sign in ((3.0, "positive"), (-3.0, "negative")):
        shape = maximum_shape([Highest(tensor="a", values=[value] * 9)], [])
        assert shape is not None
        assert (shape.sign, shape.equal, shape.concentration, len(shape.top), shape.step) == (sign, True, 1.0, 5, None)


def test_nothing_but_zeros_has_no_shape() -> None:
    assert maximum_shape([], [1.0]) is None
    assert maximum_shape([Highest(tensor="a", values=[]), Highest(tensor="b", values=[0.0, 0.0])], []) is None


def test_the_largest_step_passes_over_what_is_not_known() -> None:
    assert largest_step([1.0, 3.0, 30.0, 60.0]) == Step(layer=2, ratio=10.0)
    assert largest_step([0.0, 3.0, None, 60.0]) is None
    assert largest_step([5.0]) is None
