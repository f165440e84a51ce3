"""Bars of other libraries stay out of what people see, and come back afterwards."""

from __future__ import annotations

import io

import pytest
from tqdm import tqdm
from tqdm.auto import tqdm as auto

from quantaudit.common.logs import no_bars


def drawn(bar: type[tqdm]) -> str:  # type: ignore[type-arg]
    file = io.StringIO()
    assert list(bar(range(3), desc="theirs", disable=False, file=file)) == [0, 1, 2]
    return file.getvalue()


@pytest.mark.parametrize("bar", [tqdm, auto])
def test_bars_that_are_switched_on_by_name_are_not_drawn(bar: type[tqdm]) -> None:  # type: ignore[type-arg]
    with no_bars():
        assert drawn(bar) == ""
    assert "theirs" in drawn(bar)


def test_bars_come_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="broken"), no_bars():
        raise ValueError("broken")
    assert "theirs" in drawn(tqdm)
