"""Scores of tokens and limits → the comparison: what has to be said first, every pair, the answer."""

from __future__ import annotations

from collections.abc import Sequence
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
from quantaudit.compare.logits.records import EvaluatedText, LogitsComparison
from quantaudit.compare.run import about, gathered, overall
from quantaudit.corpus.tokens import TokenizedCorpus
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
    said += worse_than_guessing(whole, record.unigram_perplexity, record.tokens - len(record.samples))
    for pair, other in zip(pairs, others, strict=True):
        said += doubtful(pair.subject, other.side)
        said += differences(pair, base, other.side, chats=text.chats)
        said += not_finite(pair.subject, other.scores, base.model, other.side.model)
    decisions = [decide(limit, pair, about(said, pair.subject)) for pair in pairs for limit in limits]
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
