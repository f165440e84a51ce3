"""Which tokens predictions are taken on: whole evaluation samples, fairly over domains, up to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantaudit.corpus.repeats.find import repeats_of
from quantaudit.corpus.split import round_robin
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import CorpusError
from quantaudit.simulate.records import LEAST_CAP, PARTS

SHORTEST = 2
"""A sample below two tokens predicts nothing."""


def sample_cap(budget: int) -> int:
    """Tokens taken from one sample at most, so that no long text decides alone."""
    return max(LEAST_CAP, budget // PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The samples that predictions are taken on, cut.

    left_out: evaluation samples that are no evidence of their own. overlapping: how many of those taken are not.
    """

    samples: list[TokenizedSample]
    left_out: int
    overlapping: int


def select(samples: Sequence[TokenizedSample], budget: int, tokenizer: Any = None) -> list[TokenizedSample]:
    """Evaluation samples, one domain after the other, cut to `sample_cap` tokens and to `budget` in all.

    What repeats another one as cut, or calibrates too, is left out (`corpus.repeats`); tokenizer: whose white space
    does not count there. Where nothing else is left, what calibrates too is taken, once each: no verdict rests on that.
    A sample with images keeps the tokens up to the last of them, or is left out where they are beyond the budget.
    """
    return _select(samples, budget, tokenizer).samples


def _select(samples: Sequence[TokenizedSample], budget: int, tokenizer: Any) -> Selection:
    evaluation = [s for s in samples if s.split == "evaluation" and len(s.ids) >= SHORTEST]
    cut = [_cut(evaluation[i], budget) for i in round_robin([sample.domain for sample in evaluation])]
    whole = [*(s for s in samples if s.split == "calibration"), *cut]
    repeats = repeats_of(whole, tokenizer)
    places = range(len(whole) - len(cut), len(whole))
    independent = [whole[i] for i in places if i not in repeats.all]
    if independent or not cut:
        chosen = _within(independent, budget)
        return Selection(samples=chosen, left_out=len(cut) - len(independent), overlapping=0)
    chosen = _within(_distinct(cut, tokenizer), budget)
    return Selection(samples=chosen, left_out=len(cut) - len(chosen), overlapping=len(chosen))


def _cut(sample: TokenizedSample, budget: int) -> TokenizedSample:
    """The sample as it is run where the budget is not spent, without cutting into its images."""
    return replace(sample, ids=sample.ids[: max(sample_cap(budget), _needed(sample))])


def _needed(sample: TokenizedSample) -> int:
    return sample.pictures.least(sample.ids) if sample.pictures else 0


def _within(samples: Sequence[TokenizedSample], budget: int) -> list[TokenizedSample]:
    """So many samples, in their order, as fit into a budget; the last one is cut."""
    chosen: list[TokenizedSample] = []
    left = budget
    for sample in samples:
        if _needed(sample) > left:
            continue
        length = min(len(sample.ids), left)
        if length < SHORTEST:
            break
        chosen.append(replace(sample, ids=sample.ids[:length]))
        left -= length
    return chosen


def _distinct(samples: Sequence[TokenizedSample], tokenizer: Any) -> list[TokenizedSample]:
    """Those that repeat none before them."""
    repeated = repeats_of(samples, tokenizer).repeated
    return [sample for place, sample in enumerate(samples) if place not in repeated]


def choose(samples: Sequence[TokenizedSample], budget: int, tokenizer: Any) -> Selection:
    """The same, with what was left out. Raises CorpusError where there is none."""
    selection = _select(samples, budget, tokenizer)
    if selection.samples:
        return selection
    raise CorpusError(
        "no evaluation sample has two tokens or more", hint="give longer samples or raise --evaluation-tokens"
    )
