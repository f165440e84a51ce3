"""From the scores of single tokens to a pair: means with intervals, quantiles, bands of confidence, domains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantaudit.compare.intervals import LEVEL
from quantaudit.compare.logits.records import Divergence, Estimate, Pair, Part
from quantaudit.policy.evidence import one_otherwise
from quantaudit.simulate.logits.aggregate import (
    SampleScore,
    Sums,
    domain_score,
    mean_over_tokens,
    sums_of,
    token_spread,
)
from quantaudit.simulate.records import DomainScore
from quantaudit.stats.interval import student_t

if TYPE_CHECKING:
    from quantaudit.simulate.logits.two_models import PairScore

BANDS = (0.0, 0.25, 0.5, 0.75, 0.95)
"""Probability of the base's most likely token from which on each band goes; the last one up to 1."""


def pair_of(subject: int, scores: Sequence[PairScore], *, compared: int, floor: float) -> Pair:
    """One model against the base. floor: the base's rounding floor, nats per token; NaN where it is not known."""
    forward = [score.forward for score in scores]
    sums = [sums_of(score) for score in forward]
    whole = domain_score(sums)
    kl = _divergence(forward)
    return Pair(
        subject=subject,
        compared=compared,
        kl=kl,
        reverse=_divergence([score.backward for score in scores]),
        top1=_top1(whole, kl, len(scores)),
        perplexity=whole.perplexity,
        perplexity_ratio=_ratio(sums),
        rounding=None if kl.mean.value is None or not math.isfinite(floor) else kl.mean.value <= floor,
        confidence=list(_bands(scores)),
        domains=list(_domains(scores)),
    )


def base_score(scores: Sequence[PairScore]) -> DomainScore:
    """The other model against the base over all tokens; both perplexities are in it."""
    return domain_score([sums_of(score.forward) for score in scores])


def _divergence(scores: Sequence[SampleScore]) -> Divergence:
    whole = domain_score([sums_of(score) for score in scores])
    return Divergence(mean=_estimate(whole.kl, whole.kl_stderr, len(scores)), by_token=token_spread(scores))


def _estimate(value: float | None, stderr: float | None, samples: int, *, most: float = math.inf) -> Estimate:
    """With the interval of a mean that lies between 0 and `most`."""
    if value is None or stderr is None or samples < 2:
        return Estimate(value=value, stderr=stderr, low=None, high=None)
    reach = student_t(LEVEL, samples) * stderr
    return Estimate(value=value, stderr=stderr, low=max(0.0, value - reach), high=min(most, value + reach))


def _top1(whole: DomainScore, kl: Divergence, samples: int) -> Estimate:
    """Where all tokens agree, or none, their interval is that of one token otherwise; unless predictions are equal."""
    stderr = whole.top1_stderr
    equal = kl.by_token is not None and kl.by_token.max == 0
    if whole.top1 in (0.0, 1.0) and stderr is not None and not equal:
        stderr = one_otherwise(whole.tokens)
    return _estimate(whole.top1, stderr, samples, most=1.0)


def _ratio(sums: Sequence[Sums]) -> Estimate:
    """exp of the mean difference of losses. Its standard error is that of the mean, times the ratio."""
    predicted = [one.predicted for one in sums]
    if not sum(predicted):
        return Estimate(value=None, stderr=None, low=None, high=None)
    mean, stderr = mean_over_tokens([one.loss - one.loss_base for one in sums], predicted)
    if not math.isfinite(mean) or abs(mean) > 700:
        return Estimate(value=None, stderr=None, low=None, high=None)
    ratio = math.exp(mean)
    if stderr is None:
        return Estimate(value=ratio, stderr=None, low=None, high=None)
    reach = student_t(LEVEL, len(sums)) * stderr
    low, high = (math.exp(min(end, 700.0)) for end in (mean - reach, mean + reach))
    return Estimate(value=ratio, stderr=ratio * stderr, low=low, high=high)


def _bands(scores: Sequence[PairScore]) -> Iterator[Part]:
    """Those that have tokens, from the least sure."""
    for low, high in zip(BANDS, (*BANDS[1:], math.inf), strict=True):
        chosen = [(score.confidence >= low) & (score.confidence < high) for score in scores]
        name = f"{low:g} to {min(high, 1.0):g}" if low else f"below {high:g}"
        yield from _part(name, [(score, mask) for score, mask in zip(scores, chosen, strict=True) if mask.any()])


def _domains(scores: Sequence[PairScore]) -> Iterator[Part]:
    for domain in sorted({score.forward.sample.domain for score in scores}):
        of_domain = [score for score in scores if score.forward.sample.domain == domain]
        yield from _part(domain, [(score, np.ones(len(score.confidence), bool)) for score in of_domain])


def _part(name: str, chosen: Sequence[tuple[PairScore, NDArray[np.bool_]]]) -> Iterator[Part]:
    """One part; none where it has no token. chosen: samples, each with its positions, bool [tokens]."""
    if not chosen:
        return
    backward = domain_score([sums_of(score.backward, mask) for score, mask in chosen])
    yield Part(
        name=name,
        score=domain_score([sums_of(score.forward, mask) for score, mask in chosen]),
        reverse_kl=backward.kl,
        reverse_kl_stderr=backward.kl_stderr,
    )
