"""How often labels are drawn: more often where there are few samples."""

from __future__ import annotations

import pytest

from quantaudit.simulate.sensitivity.draws import MOST, draws_for


@pytest.mark.parametrize(
    ("tokens", "draws"),
    [(0, MOST), (1, MOST), (1024, MOST), (1366, 5), (2048, 4), (2730, 3), (4096, 2), (4097, 1), (8192, 1), (10**6, 1)],
)
def test_few_tokens_have_more_draws(tokens: int, draws: int) -> None:
    assert draws_for(tokens) == draws
