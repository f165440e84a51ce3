"""Numbers of a pair of checkpoints against NumPy in float64, on the logits of plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from quantaudit.compare.logits.pairs import BANDS, base_score, pair_of
from quantaudit.compare.logits.records import Divergence, Estimate, Pair, Part
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.simulate.logits.two_models import PairScore, logits_width, score_pair
from tests.builders import VOCABULARY, sample, tiny_model

Array = NDArray[np.float64]
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-6}
WIDER = VOCABULARY + 12


@pytest.fixture(scope="module")
def samples() -> list[TokenizedSample]:
    rng = np.random.default_rng(5)
    lengths = {"a": (40, 17, 9), "b": (33, 12), "c": (21,)}
    pairs = [(domain, length) for domain, of in lengths.items() for length in of]
    return [
        sample(rng.integers(0, 256, length).tolist(), index=number, domain=domain)
        for number, (domain, length) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """A model, and the same with a little noise on its weights and on its output: near, and not equal."""
    base, other = tiny_model("llama"), tiny_model("llama")
    torch.manual_seed(7)
    with torch.no_grad():
        base.lm_head.weight *= 4  # some predictions are sure, so that all bands have tokens
        for mine, theirs in zip(base.parameters(), other.parameters(), strict=True):
            theirs.copy_(mine + 0.05 * mine.std() * torch.randn_like(mine) if mine.ndim > 1 else mine)
    return base, other


@pytest.fixture(scope="module")
def scores(models: tuple[Any, Any], samples: list[TokenizedSample]) -> list[PairScore]:
    return score_pair(*models, samples)


@pytest.fixture(scope="module")
def pair(scores: list[PairScore]) -> Pair:
    return pair_of(1, scores, compared=VOCABULARY, floor=1e-3)


class Reference:
    """The same of plain forward passes, by sample: log-probabilities, float64 [tokens, vocabulary], of both models."""

    def __init__(self, models: tuple[Any, Any], samples: Sequence[TokenizedSample], width: int = VOCABULARY) -> None:
        self.samples = samples
        self.sides = [[_log_softmax(model, one, width) for one in samples] for model in models]

    def kl(self, base: int, other: int) -> list[Array]:
        return [(np.exp(p) * (p - q)).sum(-1) for p, q in zip(self.sides[base], self.sides[other], strict=True)]

    def agreed(self) -> list[NDArray[np.bool_]]:
        return [p.argmax(-1) == q.argmax(-1) for p, q in zip(*self.sides, strict=True)]

    def confidence(self) -> list[Array]:
        return [np.exp(p.max(-1)) for p in self.sides[0]]

    def losses(self, side: int) -> list[Array]:
        return [
            -p[np.arange(len(one.ids) - 1), one.ids[1:]] for p, one in zip(self.sides[side], self.samples, strict=True)
        ]


def _log_softmax(model: Any, one: TokenizedSample, width: int) -> Array:
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(one.ids)[None]).logits[0, :, :width].double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    normalized: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized


def mean_and_error(values: Sequence[Array]) -> tuple[float, float]:
    """Ratio estimator over samples, written as Cochran does: with mean size m̄, s² of y − R·m over n, over m̄²."""
    totals, sizes = np.array([v.sum() for v in values]), np.array([len(v) for v in values])
    ratio = totals.sum() / sizes.sum()
    if len(values) == 1:
        return float(ratio), np.nan
    spread = np.var(totals - ratio * sizes, ddof=1)
    return float(ratio), float(np.sqrt(spread / len(values)) / sizes.mean())


@pytest.fixture(scope="module")
def reference(models: tuple[Any, Any], samples: list[TokenizedSample]) -> Reference:
    return Reference(models, samples)


def check_estimate(found: Estimate, values: Sequence[Array], *, most: float = np.inf) -> None:
    mean, error = mean_and_error(values)
    reach = student.ppf(0.975, len(values) - 1) * error
    expected = [mean, error, max(0.0, mean - reach), min(most, mean + reach)]
    np.testing.assert_allclose([found.value, found.stderr, found.low, found.high], expected, **CLOSE)


def check_divergence(found: Divergence, values: Sequence[Array]) -> None:
    check_estimate(found.mean, values)
    spread, ordered = found.by_token, np.sort(np.concatenate(values))
    assert spread is not None
    # The least value that a share of all tokens is at or below.
    expected = [ordered[int(np.ceil(share * len(ordered))) - 1] for share in (0.5, 0.9, 0.99, 1.0)]
    np.testing.assert_allclose([spread.median, spread.p90, spread.p99, spread.max], expected, **CLOSE)


def test_kl_both_ways_with_interval_and_quantiles(pair: Pair, reference: Reference) -> None:
    check_divergence(pair.kl, reference.kl(0, 1))
    check_divergence(pair.reverse, reference.kl(1, 0))
    assert pair.kl.mean.value != pytest.approx(pair.reverse.mean.value, rel=1e-2)
    assert pair.rounding is False


def test_top1_and_what_the_base_was_confident_of(pair: Pair, reference: Reference) -> None:
    agreed = reference.agreed()
    check_estimate(pair.top1, [row.astype(float) for row in agreed], most=1.0)
    sure = np.concatenate(reference.confidence()) >= 0.5
    assert pair.kl.by_token is not None
    assert pair.kl.by_token.confident == sure.sum() > 10
    assert pair.kl.by_token.flipped == pytest.approx((sure & ~np.concatenate(agreed)).sum() / sure.sum())


def test_perplexities_and_their_ratio(pair: Pair, scores: list[PairScore], reference: Reference) -> None:
    base, other = reference.losses(0), reference.losses(1)
    assert base_score(scores).perplexity_base == pytest.approx(np.exp(np.concatenate(base).mean()), rel=1e-4)
    assert pair.perplexity == pytest.approx(np.exp(np.concatenate(other).mean()), rel=1e-4)
    mean, error = mean_and_error([theirs - ours for ours, theirs in zip(base, other, strict=True)])
    reach = student.ppf(0.975, len(base) - 1) * error
    found = pair.perplexity_ratio
    expected = np.exp([mean, mean - reach, mean + reach])
    np.testing.assert_allclose([found.value, found.low, found.high], expected, rtol=1e-4)


def check_part(part: Part, reference: Reference, masks: Sequence[NDArray[np.bool_]]) -> None:
    """masks: by sample, which of its tokens are in the part."""
    kept = [number for number, mask in enumerate(masks) if mask.any()]
    forward, backward = ([rows[n][masks[n]] for n in kept] for rows in (reference.kl(0, 1), reference.kl(1, 0)))
    assert (part.score.tokens, part.score.samples) == (sum(map(len, forward)), len(kept))
    np.testing.assert_allclose(
        [part.score.kl, part.reverse_kl], [mean_and_error(v)[0] for v in (forward, backward)], **CLOSE
    )
    if len(kept) > 1:
        errors = [part.score.kl_stderr, part.reverse_kl_stderr]
        np.testing.assert_allclose(errors, [mean_and_error(v)[1] for v in (forward, backward)], **CLOSE)
    agreed = np.concatenate([reference.agreed()[n][masks[n]] for n in kept])
    assert part.score.top1 == pytest.approx(agreed.mean())


def test_bands_of_the_bases_confidence(pair: Pair, reference: Reference) -> None:
    confidence = reference.confidence()
    ends = [*BANDS, np.inf]
    masks = [[(row >= low) & (row < high) for row in confidence] for low, high in pairwise(ends)]
    filled = [of for of in masks if any(mask.any() for mask in of)]
    assert len(filled) == len(pair.confidence) == len(BANDS)
    for part, of in zip(pair.confidence, filled, strict=True):
        check_part(part, reference, of)
    assert sum(part.score.tokens for part in pair.confidence) == sum(map(len, confidence))


def test_domains(pair: Pair, reference: Reference) -> None:
    assert [part.name for part in pair.domains] == ["a", "b", "c"]
    for part in pair.domains:
        masks = [np.full(len(one.ids), one.domain == part.name) for one in reference.samples]
        check_part(part, reference, masks)
    assert pair.domains[2].score.kl_stderr is None  # of one sample


def test_a_model_is_nowhere_from_itself(models: tuple[Any, Any], samples: list[TokenizedSample]) -> None:
    found = pair_of(1, score_pair(models[0], models[0], samples), compared=VOCABULARY, floor=1e-3)
    for side in (found.kl, found.reverse):
        assert (side.mean.value, side.mean.high) == (0.0, 0.0)
        assert side.by_token is not None
        assert (side.by_token.max, side.by_token.flipped) == (0.0, 0.0)
    assert (found.top1.value, found.perplexity_ratio.value, found.rounding) == (1.0, 1.0, True)


def test_the_part_of_the_vocabulary_that_both_have(models: tuple[Any, Any], samples: list[TokenizedSample]) -> None:
    wider = tiny_model("llama", seed=3, vocab_size=WIDER)
    assert [logits_width(model, samples[0]) for model in (models[0], wider)] == [VOCABULARY, WIDER]
    found = pair_of(1, score_pair(models[0], wider, samples, vocabulary=VOCABULARY), compared=VOCABULARY, floor=0.0)
    expected = Reference((models[0], wider), samples)
    check_divergence(found.kl, expected.kl(0, 1))
    check_divergence(found.reverse, expected.kl(1, 0))


def test_logits_that_are_no_numbers_are_noticed(models: tuple[Any, Any], samples: list[TokenizedSample]) -> None:
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    scores = score_pair(models[0], broken, samples[:2])
    assert {score.finite for score in scores} == {(True, False)}
    found = pair_of(1, scores, compared=VOCABULARY, floor=1e-3)
    assert (found.kl.mean.value, found.kl.by_token, found.top1.value, found.rounding) == (None, None, None, None)


def test_one_sample_has_no_interval(models: tuple[Any, Any], samples: list[TokenizedSample]) -> None:
    found = pair_of(1, score_pair(*models, samples[:1]), compared=VOCABULARY, floor=1e-3)
    for estimate in (found.kl.mean, found.reverse.mean, found.top1, found.perplexity_ratio):
        assert estimate.value is not None
        assert (estimate.stderr, estimate.low, estimate.high) == (None, None, None)
