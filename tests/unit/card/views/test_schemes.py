"""What a KL means is said in words that its digits bear out."""

from __future__ import annotations

import pytest

from quantaudit.card.views.schemes import on_perplexity


@pytest.mark.parametrize(
    ("kl", "words"),
    [
        (0.0, "leaves the perplexity as it is"),
        (9e-5, "leaves the perplexity as it is"),
        (2e-4, "multiplies the perplexity by 1.0002"),
        (0.004, "multiplies the perplexity by 1.004"),
        (0.0412, "multiplies the perplexity by 1.04"),
        (1.0, "multiplies the perplexity by 2.72"),
        (3.0, "multiplies the perplexity by 20.1"),
        (1e4, "multiplies the perplexity by 1.01e+304"),
    ],
)
def test_a_factor_is_never_said_to_be_one(kl: float, words: str) -> None:
    assert on_perplexity(kl) == words
