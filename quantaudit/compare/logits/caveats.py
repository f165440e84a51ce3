"""What has to be said before any number of a comparison of checkpoints, and what it leaves undecided. QA71x."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantaudit.card.judge.simulated import chance
from quantaudit.card.text import counted
from quantaudit.common.findings import declare
from quantaudit.compare.caveats import caveat, some
from quantaudit.compare.logits.records import ComparedModel, EvaluatedText, Pair
from quantaudit.compare.report import Caveat
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.provenance import Doubt
from quantaudit.simulate.evaluation import Selection

if TYPE_CHECKING:
    from quantaudit.simulate.logits.two_models import PairScore

DISTANCE = ("the distance",)
"""What is undecided where a model or the text cannot be trusted: everything."""

declare(
    "QA712",
    "A checkpoint that may not be the model that was meant",
    severity="inconclusive",
    why="What was loaded in part, from codes read as weights, or as another class, is another model: how far it lies "
    "from the other says nothing about the checkpoint.",
    remedy="Mend what is named; `quantaudit report MODEL` says more about the checkpoint.",
)
declare(
    "QA713",
    "The text is no evidence",
    severity="inconclusive",
    why="Padding is no text, and text that calibrates too is not held out: a model that was quantized on it is nearer "
    "there than elsewhere.",
    remedy="Give samples without padding, and evaluation samples of their own (`split` in the corpus).",
)
declare(
    "QA714",
    "Logits that are NaN or infinite",
    severity="error",
    why="A distribution with such a logit is none, and no KL to it or from it is a number.",
    remedy="Run the model in a wider dtype (--dtype float32), or check its weights.",
)
declare(
    "QA715",
    "Outputs of different widths",
    severity="info",
    why="Checkpoints of one family pad their vocabularies differently. Rows beyond the tokenizer stand for no token, "
    "and what probability they have is left out on both sides.",
    remedy="Nothing.",
)
declare(
    "QA716",
    "Another chat template",
    severity="info",
    why="All models are given the same tokens: chats are written by the base's template, which the other may not have "
    "been trained on.",
    remedy="Nothing, to compare what the weights do; --special-tokens none writes chats without any template.",
)
declare(
    "QA717",
    "Run in another dtype, or with other products",
    severity="info",
    why="Rounding in another dtype moves the logits too, so that part of the distance is that of the dtype.",
    remedy="Give all models the same --dtype where that part matters.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSide:
    """What was found of one model while it ran. model: as it was loaded; template: digest of its chat template."""

    model: ComparedModel
    doubts: Sequence[Doubt]
    template: str | None


def doubtful(index: int, side: LoadedSide) -> Iterator[Caveat]:
    """Why a model may not be the one that was meant."""
    texts = [f"`{doubt.module}`: {doubt.text}" if doubt.module else doubt.text for doubt in side.doubts]
    if texts:
        yield caveat("QA712", index, f"{side.model.label}: {some(texts)}", undecided=DISTANCE)


def no_evidence(corpus: TokenizedCorpus, chosen: Selection) -> Iterator[Caveat]:
    """What makes the tokens unfit to say anything."""
    if padded := corpus.info.padded:
        message = f"{counted(len(padded), 'sample')} begin or end in padding tokens, such as `{padded[0]}`"
        yield caveat("QA713", 0, message, undecided=DISTANCE)
    if chosen.overlapping:
        message = f"the text of all {counted(chosen.overlapping, 'evaluated sample')} calibrates too"
        yield caveat("QA713", 0, message, undecided=DISTANCE)


def worse_than_guessing(perplexity: float | None, text: EvaluatedText) -> Iterator[Caveat]:
    """QA712 of a base that predicts the text worse than token frequencies do, as no trained model does.

    perplexity: of the base, whose logits are finite; an infinite one is null in records.
    """
    guessing = text.unigram_perplexity
    if guessing is None:
        return
    shown = math.inf if perplexity is None else perplexity
    if shown > guessing * chance(text.tokens - len(text.samples)):
        message = (
            f"the base predicts the text worse than token frequencies do (perplexity {shown:,.4g} against "
            f"{guessing:,.4g})"
        )
        yield caveat("QA712", 0, message, undecided=DISTANCE)


def differences(pair: Pair, base: LoadedSide, other: LoadedSide, *, chats: bool) -> Iterator[Caveat]:
    """How a model ran otherwise than the base. chats: whether a chat template wrote any of the text."""
    ours, theirs = base.model, other.model
    if ours.width != theirs.width:
        message = f"{ours.width:,} against {theirs.width:,} logits; the first {pair.compared:,} are compared"
        yield caveat("QA715", pair.subject, message)
    if chats and base.template != other.template:
        yield caveat("QA716", pair.subject, f"that of {theirs.label} is not {ours.label}'s, which wrote the chats")
    runs = [f"{side.dtype}, {side.arithmetic} products" for side in (ours, theirs)]
    if runs[0] != runs[1]:
        yield caveat("QA717", pair.subject, " against ".join(runs))


def not_finite(index: int, scores: Sequence[PairScore], base: ComparedModel, other: ComparedModel) -> Iterator[Caveat]:
    """Which of both has logits that are no numbers. index: of the other."""
    for place, model, subject in ((0, base, 0), (1, other, index)):
        if broken := sum(not score.finite[place] for score in scores):
            message = f"{model.label}: in {broken:,} of {counted(len(scores), 'sample')}"
            yield caveat("QA714", subject, message)
