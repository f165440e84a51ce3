"""How long loading took is shown by stage with --debug, and costs nothing without."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
from torch import nn, randn

from quantaudit.common import timing


@pytest.fixture
def shown() -> Iterator[None]:
    timing.show_timings()
    yield
    timing.LOG.handlers.clear()
    timing.LOG.setLevel(logging.NOTSET)
    timing.LOG.propagate = True


def test_a_stage_is_one_line_on_stderr_even_if_it_fails(shown: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), timing.timed("weights"):
        raise ValueError("broken")
    captured = capsys.readouterr()
    assert re.fullmatch(r"debug: at +\d+\.\d\d s, weights took 0\.\d\d s\n", captured.err)
    assert captured.out == ""


def test_only_the_first_call_is_timed_and_no_hook_remains(shown: None, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(2, 2)
    timing.time_first_call(model, "the first forward pass")
    for _ in range(2):
        model(randn(1, 2))
    assert capsys.readouterr().err.count("the first forward pass took") == 1
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_without_debug_nothing_is_said_and_no_hook_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(2, 2)
    timing.time_first_call(model, "the first forward pass")
    assert not model._forward_pre_hooks
    with timing.timed("weights"):
        pass
    assert capsys.readouterr().err == ""
