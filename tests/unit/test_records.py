"""A record shows itself in one screen, whatever it holds."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from quantaudit.provenance import ModuleInfo, Row


class Report(Row):
    title: str
    rows: list[ModuleInfo]
    first: ModuleInfo
    numbers: list[int]


def module(name: str) -> ModuleInfo:
    return ModuleInfo(name=name, classes=["Linear", "Module"], weight_shape=[4, 4])


def test_many_rows_and_long_texts_are_counted() -> None:
    report = Report(title="x" * 500, rows=[module(str(n)) for n in range(900)], first=module("a"), numbers=[1, 2])
    shown = repr(report)
    assert len(shown) < 300
    assert "rows=<900 items>" in shown
    assert "first=ModuleInfo(…)" in shown
    assert "numbers=[1, 2]" in shown


def test_a_small_record_shows_all_of_itself() -> None:
    assert repr(module("a")) == "ModuleInfo(name='a', classes=['Linear', 'Module'], weight_shape=[4, 4])"


@pytest.mark.parametrize("shape", [[10**30], [2**31, 2**31, 2], [-1]])
def test_a_shape_that_no_tensor_has_is_refused(shape: list[int]) -> None:
    with pytest.raises(ValidationError, match=r"no tensor has more|greater than or equal to 0"):
        ModuleInfo(name="a", classes=["Linear", "Module"], weight_shape=shape)
