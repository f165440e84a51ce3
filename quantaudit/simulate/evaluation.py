"""Which tokens predictions are taken on: whole evaluation samples, fairly over domains, up to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantaudit.corpus.split import round_robin
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import CorpusError

SHORTEST = 2
"""A sample below two tokens predicts nothing."""


def sample_cap(budget: int) -> int:
    """Tokens taken from one sample at most, so that no long text decides alone."""
    return max(256, budget // 16)


def select(samples: Sequence[TokenizedSample], budget: int) -> list[TokenizedSample]:
    """Evaluation samples, one domain after the other, cut to `sample_cap` tokens and to `budget` in all.

    A sample with images keeps the tokens up to the last of them, or is left out where they are beyond the budget.
    """
    evaluation = [s for s in samples if s.split == "evaluation" and len(s.ids) >= SHORTEST]
    chosen: list[TokenizedSample] = []
    left = budget
    for i in round_robin([sample.domain for sample in evaluation]):
        sample = evaluation[i]
        needed = sample.pictures.least(sample.ids) if sample.pictures else 0
        if needed > left:
            continue
        length = min(len(sample.ids), max(sample_cap(budget), needed), left)
        if length < SHORTEST:
            break
        chosen.append(replace(sample, ids=sample.ids[:length]))
        left -= length
    return chosen


def select_some(samples: Sequence[TokenizedSample], budget: int) -> list[TokenizedSample]:
    """The same. Raises CorpusError where there is none."""
    if chosen := select(samples, budget):
        return chosen
    raise CorpusError(
        "no evaluation sample has two tokens or more", hint="give longer samples or raise --evaluation-tokens"
    )
