"""The baseline of guessing against a second implementation, and what makes it a fair bar in both directions."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.stats.unigram import unigram_perplexity

VOCABULARY = 50
Text = list[list[int]]
texts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=12), min_size=1, max_size=6)


def arrays(text: Text) -> list[np.ndarray]:
    return [np.asarray(ids, np.int64) for ids in text]


def perplexity(text: Text, evaluated: Text | None = None, vocabulary: int = VOCABULARY) -> float:
    return unigram_perplexity(arrays(text), arrays(evaluated or text), vocabulary)


def plain(text: Text, evaluated: Text, vocabulary: int = VOCABULARY) -> float:
    """Dictionaries and a fine grid instead of arrays and an optimizer."""
    pairs = {pair for ids in text for pair in itertools.pairwise(ids)}
    ends = Counter(end for _, end in pairs)
    others = max(len(pairs) - 1, 1)

    def loss(weight: float, tokens: list[int]) -> float:
        return -sum(math.log(weight * (ends[t] - 1) / others + (1 - weight) / vocabulary) for t in tokens) / len(tokens)

    grid = [*np.linspace(0, 0.999, 2000), *(1 - np.geomspace(1e-3, 1e-6, 50))]
    best = min(grid, key=lambda weight: loss(weight, [end for _, end in pairs]))
    return min(vocabulary, math.exp(loss(best, [t for ids in evaluated for t in ids[1:]])))


@given(texts)
def test_it_is_the_perplexity_of_the_stated_estimator(text: Text) -> None:
    evaluated = text[:2]
    # λ is known as closely as the grid and the optimizer's tolerance allow.
    assert perplexity(text, evaluated) == pytest.approx(plain(text, evaluated), rel=0.01)


@given(texts)
def test_it_is_never_worse_than_uniform_guessing(text: Text) -> None:
    assert perplexity(text, text[-1:]) <= VOCABULARY


def test_on_many_independent_tokens_it_is_the_entropy_of_their_law() -> None:
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(VOCABULARY, 0.5))
    # Every pair is new where tokens alternate with ever new ones; only the tokens of the law are evaluated.
    fresh = iter(range(VOCABULARY, 10**6))
    text = [[next(fresh), int(t)] for t in rng.choice(VOCABULARY, 20_000, p=law)]
    expected = math.exp(-(law[law > 0] * np.log(law[law > 0])).sum())
    assert perplexity(text, vocabulary=10**6) == pytest.approx(expected, rel=0.05)


def test_a_few_tokens_are_no_bar_at_all() -> None:
    assert perplexity([[1, 2, 3, 4, 5], [6, 7, 8]]) == pytest.approx(VOCABULARY, rel=1e-3)


def test_copies_of_a_sample_teach_the_baseline_nothing() -> None:
    """A model sees each copy for the first time."""
    once = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7]]
    assert perplexity(once * 100) == pytest.approx(perplexity(once), rel=1e-6)


def test_without_a_prediction_there_is_no_number() -> None:
    assert math.isnan(perplexity([[1, 2]], [[1]]))
    assert math.isnan(unigram_perplexity(arrays([[1, 2]]), [], VOCABULARY))


def test_tokens_that_none_has_to_predict_count_for_nothing() -> None:
    text = [[1, 9, 9, 9, 2, 3, 1, 2], [3, 2, 1, 3]]
    whole = math.log(unigram_perplexity(arrays(text), arrays(text), VOCABULARY)) * 10
    images = math.log(unigram_perplexity(arrays(text), arrays([[9, 9, 9, 9]]), VOCABULARY)) * 3
    rest = unigram_perplexity(arrays(text), arrays(text), VOCABULARY, unpredicted={9})
    assert math.log(rest) * 7 == pytest.approx(whole - images)
    assert math.isnan(unigram_perplexity(arrays(text), arrays([[1, 9, 9]]), VOCABULARY, unpredicted=[9]))
