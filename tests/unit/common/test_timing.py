"""How long loading took is shown by stage with --debug, and costs nothing without."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from quantaudit.common import timing


@pytest.fixture
def shown() -> Iterator[None]:
    timing.show_timings()
    yield
    timing.hide_timings()


def test_a_command_without_debug_says_nothing_after_one_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    timing.show_timings()
    timing.hide_timings()
    with timing.timed("weights"):
        pass
    assert capsys.readouterr().err == ""
    assert not timing.is_shown()


def test_a_stage_is_one_line_on_stderr_even_if_it_fails(shown: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), timing.timed("weights"):
        raise ValueError("broken")
    captured = capsys.readouterr()
    assert re.fullmatch(r"debug: at +\d+\.\d\d s, weights took 0\.\d\d s\n", captured.err)
    assert captured.out == ""


def test_without_debug_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with timing.timed("weights"):
        pass
    assert capsys.readouterr().err == ""
