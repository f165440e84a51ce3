"""Two models on the same tokens, one sample after the other: how far their next-token distributions are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantaudit.common.progress import Advance, no_advance
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.simulate.logits.aggregate import SampleScore
from quantaudit.simulate.logits.kl import Scratch, confidence
from quantaudit.simulate.logits.score_plans import clean_of, compared, logits_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScore:
    """One sample under two models.

    forward: the other model against the base, whose KL is KL(base‖other); backward: the base against the other.
    confidence: float64 [tokens], the base's probability of its most likely token. finite: of the base and of the other,
    whether no logit was NaN or infinite above.
    """

    forward: SampleScore
    backward: SampleScore
    confidence: NDArray[np.float64]
    finite: tuple[bool, bool]


@torch.no_grad()
def score_pair(
    base: nn.Module,
    other: nn.Module,
    samples: Sequence[TokenizedSample],
    *,
    vocabulary: int | None = None,
    progress: Advance = no_advance,
) -> list[PairScore]:
    """Scores of every sample. vocabulary: how many of the first logits are compared; None for all, which are as many.

    The logits of one sample under both models are in memory at a time. `progress` is called after each.
    """
    scratch = Scratch()
    scores = []
    for sample in samples:
        ours, theirs = (
            clean_of(sample, logits_of(model, sample)[:, :vocabulary], {}, scratch) for model in (base, other)
        )
        scores.append(
            PairScore(
                forward=compared(ours, theirs.logits, {}, 0, scratch),
                backward=compared(theirs, ours.logits, {}, 0, scratch),
                confidence=confidence(ours.logits, ours.stats).double().cpu().numpy(),
                finite=(bool(ours.stats.normalizer.isfinite().all()), bool(theirs.stats.normalizer.isfinite().all())),
            )
        )
        progress()
    return scores


def logits_width(model: nn.Module, sample: TokenizedSample) -> int:
    """How many tokens a model has a logit for: the width of its output, which may be larger than its tokenizer."""
    return int(logits_of(model, replace(sample, ids=sample.ids[:2], assistant=None)).shape[-1])
