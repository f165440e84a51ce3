"""A recipe's row from the scores of single tokens: means over tokens, standard errors over samples. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.records import DomainScore, RecipeRow, TokenSpread


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScore:
    """One sample under one plan.

    kl: float64 [tokens], nats; agreed: bool [tokens]; confident: bool [tokens], whether the unquantized model gives its
    most likely token one half or more; loss, loss_base: float64 [tokens − 1], nats at the positions that
    have a next token; drift: float64 [blocks], Σ over tokens of ‖Δh‖² / ‖h‖² at each block's output,
    NaN for a block that the model skips.
    """

    sample: TokenizedSample
    kl: NDArray[np.float64]
    agreed: NDArray[np.bool_]
    confident: NDArray[np.bool_]
    loss: NDArray[np.float64]
    loss_base: NDArray[np.float64]
    drift: NDArray[np.float64]

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        data: bytes = save({name: getattr(self, name) for name in _ARRAYS})
        return data

    @classmethod
    def from_bytes(cls, sample: TokenizedSample, data: bytes) -> SampleScore:
        """The score of that sample, every bit of it."""
        return cls(sample=sample, **load(data))


_ARRAYS = ("kl", "agreed", "confident", "loss", "loss_base", "drift")


def recipe_row(plan: Plan, scores: Sequence[SampleScore]) -> RecipeRow:
    """The row of one plan from its samples."""
    whole = domain_score([sums_of(score) for score in scores])
    domains = sorted({score.sample.domain for score in scores})
    answers = {
        domain: [sums for score in scores if score.sample.domain == domain and (sums := _answers(score)) is not None]
        for domain in domains
    }
    all_answers = [sums for domain_sums in answers.values() for sums in domain_sums]
    tokens = sum(len(score.kl) for score in scores)
    return RecipeRow(
        name=plan.name,
        title=plan.title,
        kl=whole.kl,
        kl_stderr=whole.kl_stderr,
        by_token=token_spread(scores),
        top1=whole.top1,
        top1_stderr=whole.top1_stderr,
        perplexity=whole.perplexity,
        perplexity_base=whole.perplexity_base,
        tokens=tokens,
        samples=len(scores),
        nonfinite=whole.kl is None or bool(plan.unscaled),
        groups=plan.groups,
        domains={
            domain: domain_score([sums_of(score) for score in scores if score.sample.domain == domain])
            for domain in domains
        },
        assistant=domain_score(all_answers) if all_answers else None,
        assistant_domains={domain: domain_score(domain_sums) for domain, domain_sums in answers.items() if domain_sums},
        digest=plan.digest,
        approximate=list(plan.approximate),
        unsimulated=list(plan.unsimulated),
        propagation=[float(total) / tokens for total in np.sum([score.drift for score in scores], 0)],
    )


def token_spread(scores: Sequence[SampleScore]) -> TokenSpread | None:
    """Over all tokens of all samples; None where some KL is no finite number."""
    # Rounding leaves some a little below 0, which a KL never is.
    kl = np.maximum(np.concatenate([score.kl for score in scores]), 0.0)
    if not np.isfinite(kl).all():
        return None
    confident = np.concatenate([score.confident for score in scores])
    flipped = confident & ~np.concatenate([score.agreed for score in scores])
    median, p90, p99, most = np.quantile(kl, [0.5, 0.9, 0.99, 1.0], method="inverted_cdf").tolist()
    count = int(confident.sum())
    return TokenSpread(
        median=median,
        p90=p90,
        p99=p99,
        max=most,
        confident=count,
        flipped=int(flipped.sum()) / count if count else None,
    )


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over some positions of one sample; `predicted` of them have a next token that is no image."""

    tokens: int
    predicted: int
    kl: float
    agreed: float
    loss: float
    loss_base: float


def sums_of(score: SampleScore, chosen: NDArray[np.bool_] | None = None) -> Sums:
    """Over the chosen positions, bool [tokens]; over all by default."""
    chosen = np.ones(len(score.kl), bool) if chosen is None else chosen
    # Placeholders of images are never predicted: their loss would drown that of the text.
    text = chosen[:-1] & ~score.sample.images[1:]
    return Sums(
        tokens=int(chosen.sum()),
        predicted=int(text.sum()),
        kl=float(score.kl[chosen].sum()),
        agreed=float(score.agreed[chosen].sum()),
        loss=float(score.loss[text].sum()),
        loss_base=float(score.loss_base[text].sum()),
    )


def _answers(score: SampleScore) -> Sums | None:
    """Positions whose next token is the assistant's: what the model is deployed to predict. None without any."""
    if score.sample.assistant is None:
        return None
    # Position t predicts token t + 1.
    chosen = np.append(score.sample.assistant[1 : len(score.kl)], False)
    return sums_of(score, chosen) if chosen.any() else None


def domain_score(sums: Sequence[Sums]) -> DomainScore:
    """Means over tokens, and their standard errors over samples."""
    tokens, predicted = sum(one.tokens for one in sums), sum(one.predicted for one in sums)
    sizes = [one.tokens for one in sums]
    kl, kl_stderr = mean_over_tokens([one.kl for one in sums], sizes)
    top1, top1_stderr = mean_over_tokens([one.agreed for one in sums], sizes)
    return DomainScore(
        tokens=tokens,
        samples=len(sums),
        # A KL is never negative; summed in float32, that of nearly equal logits may come out below 0 by rounding.
        kl=max(kl, 0.0),
        kl_stderr=kl_stderr,
        top1=None if math.isnan(kl) else top1,
        top1_stderr=None if math.isnan(kl) else top1_stderr,
        perplexity=_perplexity(sum(one.loss for one in sums), predicted),
        perplexity_base=_perplexity(sum(one.loss_base for one in sums), predicted),
    )


def mean_over_tokens(totals: Sequence[float], sizes: Sequence[int]) -> tuple[float, float | None]:
    """Mean over tokens and its standard error over samples (ratio estimator, Cochran 1977, 6.4); None for a single one.

    totals: sums over the tokens of each sample; sizes: how many those are.
    """
    tokens, count = sum(sizes), len(sizes)
    mean = sum(totals) / tokens
    spread = sum((total - size * mean) ** 2 for total, size in zip(totals, sizes, strict=True))
    return mean, math.sqrt(spread * count / (count - 1)) / tokens if count > 1 else None


def _perplexity(loss: float, predicted: int) -> float:
    """NaN where there was nothing to predict; 1 at least, whatever a certain model's loss was rounded to."""
    if not predicted:
        return math.nan
    return max(math.exp(loss / predicted), 1.0) if loss / predicted < 700 else math.inf
