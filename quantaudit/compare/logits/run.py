"""Scores of tokens and limits → the comparison: what has to be said first, every pair, the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantaudit._version import __version__
from quantaudit.compare.intervals import LEVEL
from quantaudit.compare.limits import Limit
from quantaudit.compare.logits.caveats import (
    LoadedSide,
    differences,
    doubtful,
    no_evidence,
    not_finite,
    worse_than_guessing,
)
from quantaudit.compare.logits.limits import decide
from quantaudit.compare.logits.pairs import base_score, pair_of
from quantaudit.compare.logits.records import EvaluatedText, LogitsComparison, Pair
from quantaudit.compare.report import Caveat
from quantaudit.compare.run import about, gathered, overall
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.policy import load_policy
from quantaudit.policy.evidence import too_few
from quantaudit.provenance import EnvironmentInfo
from quantaudit.simulate.evaluation import Selection
from quantaudit.stats.unigram import unigram_perplexity

if TYPE_CHECKING:
    from quantaudit.simulate.logits.two_models import PairScore


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedText:
    """The corpus in the base's tokens, and what of it the models ran on. chats: whether it has any."""

    corpus: TokenizedCorpus
    chosen: Selection
    chats: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherSide:
    """One model next to the base. compared: how many of the first logits were."""

    side: LoadedSide
    scores: Sequence[PairScore]
    compared: int


def compare_sides(
    text: ComparedText,
    base: LoadedSide,
    floor: float,
    others: Sequence[OtherSide],
    limits: Sequence[Limit] = (),
    *,
    environment: EnvironmentInfo,
) -> LogitsComparison:
    """Every other model against the base. floor: the base's rounding floor, nats per token."""
    record = _record(text, base.model.width)
    whole = base_score(others[0].scores)
    pairs = [
        pair_of(index, other.scores, compared=other.compared, floor=floor)
        for index, other in enumerate(others, start=1)
    ]
    said = [*no_evidence(text.corpus, text.chosen), *doubtful(0, base)]
    if all(score.finite[0] for score in others[0].scores):
        said += worse_than_guessing(whole.perplexity_base, record)
    said += _of_pairs(pairs, base, others, chats=text.chats)
    few = too_few(record.tokens, len(record.samples), load_policy().evaluation)
    decisions = [decide(limit, pair, about(said, pair.subject), few) for pair in pairs for limit in limits]
    return LogitsComparison(
        quantaudit_version=__version__,
        level=LEVEL,
        environment=environment,
        text=record,
        models=[base.model, *(other.side.model for other in others)],
        perplexity=whole.perplexity_base,
        rounding_floor=floor,
        caveats=gathered(said),
        pairs=pairs,
        decisions=decisions,
        outcome=overall(row.outcome for row in decisions) if limits else None,
    )


def _of_pairs(pairs: Sequence[Pair], base: LoadedSide, others: Sequence[OtherSide], *, chats: bool) -> Iterator[Caveat]:
    for pair, other in zip(pairs, others, strict=True):
        yield from doubtful(pair.subject, other.side)
        yield from differences(pair, base, other.side, chats=chats)
        yield from not_finite(pair.subject, other.scores, base.model, other.side.model)


def _record(text: ComparedText, vocabulary: int) -> EvaluatedText:
    info, samples = text.corpus.info, text.chosen.samples
    return EvaluatedText(
        corpus=info.name,
        corpus_sha256=info.sha256,
        seed=info.seed,
        max_length=info.max_length,
        special_tokens=info.special_tokens,
        tokens=sum(len(sample.ids) for sample in samples),
        samples=[sample.id for sample in samples],
        left_out=text.chosen.left_out,
        unigram_perplexity=unigram_perplexity(
            [sample.ids for sample in text.corpus.samples], [sample.ids for sample in samples], vocabulary
        ),
    )
