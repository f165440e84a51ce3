"""`--fail-on` of checkpoints: the upper end of an interval decides, and what is not known never passes."""

from __future__ import annotations

import pytest

from quantaudit.compare.caveats import caveat
from quantaudit.compare.logits.caveats import DISTANCE
from quantaudit.compare.logits.limits import decide, parse_limits
from quantaudit.compare.logits.records import Divergence, Estimate, Pair
from quantaudit.compare.report import Caveat, Decision
from quantaudit.errors import UsageError

UNKNOWN = Estimate(value=None, stderr=None, low=None, high=None)


def estimate(value: float | None, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, stderr=None, low=low, high=high)


def pair_with(kl: Estimate = UNKNOWN, top1: Estimate = UNKNOWN) -> Pair:
    return Pair(
        subject=1,
        compared=8,
        kl=Divergence(mean=kl, by_token=None),
        reverse=Divergence(mean=UNKNOWN, by_token=None),
        top1=top1,
        perplexity=None,
        perplexity_ratio=UNKNOWN,
        rounding=None,
        confidence=[],
        domains=[],
    )


def decision(
    limit: str,
    kl: Estimate = UNKNOWN,
    top1: Estimate = UNKNOWN,
    caveats: tuple[Caveat, ...] = (),
    few: str | None = None,
) -> Decision:
    (parsed,) = parse_limits([limit])
    return decide(parsed, pair_with(kl, top1), caveats, few)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((0.02, 0.01, 0.03), "pass"),
        ((0.02, 0.01, 0.04), "pass"),
        ((0.02, 0.01, 0.0401), "inconclusive"),
        ((0.05, 0.04, 0.06), "inconclusive"),
        ((0.05, 0.0401, 0.06), "fail"),
        ((0.02, None, None), "inconclusive"),
        ((0.05, None, None), "inconclusive"),
        ((None, None, None), "inconclusive"),
    ],
)
def test_the_interval_of_the_kl_decides(found: tuple[float | None, ...], expected: str) -> None:
    row = decision("kl=0.04", kl=estimate(*found))
    assert row.outcome == expected
    assert row.reason


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((0.97, 0.96, 0.98), "pass"),
        ((0.95, 0.93, 0.97), "inconclusive"),
        ((0.90, 0.88, 0.92), "fail"),
        ((0.97, None, None), "inconclusive"),
    ],
)
def test_a_limit_on_top1_is_of_tokens_that_change(found: tuple[float | None, ...], expected: str) -> None:
    assert decision("top1=0.05", top1=estimate(*found)).outcome == expected


@pytest.mark.parametrize(("mean", "expected"), [(0.01, "inconclusive"), (0.5, "fail")])
def test_too_little_text_passes_nothing(mean: float, expected: str) -> None:
    row = decision("kl=0.1", kl=estimate(mean, mean, mean), few="It rests on 3 tokens.")
    assert row.outcome == expected
    assert ("3 tokens" in row.reason) == (expected == "inconclusive")


def test_what_is_exactly_equal_passes_a_limit_of_nothing() -> None:
    assert decision("kl=0", kl=estimate(0.0, 0.0, 0.0)).outcome == "pass"
    assert decision("top1=0", top1=estimate(1.0, 1.0, 1.0)).outcome == "pass"
    assert decision("kl=0", kl=estimate(1e-9, 0.0, 2e-9)).outcome == "inconclusive"


@pytest.mark.parametrize("mean", [estimate(0.0, 0.0, 0.0), estimate(9.0, 8.0, 10.0)])
def test_a_model_that_is_doubted_decides_nothing(mean: Estimate) -> None:
    row = decision("kl=1", kl=mean, caveats=(caveat("QA712", 1, "stored and not used", undecided=DISTANCE),))
    assert row.outcome == "inconclusive"
    assert "stored and not used" in row.reason


@pytest.mark.parametrize(("subject", "expected"), [(1, "fail"), (0, "inconclusive")])
def test_logits_that_are_no_numbers_fail_unless_the_base_has_them(subject: int, expected: str) -> None:
    assert decision("kl=1", caveats=(caveat("QA714", subject, "in 1 of 2 samples"),)).outcome == expected


@pytest.mark.parametrize("limit", ["verdict", "peak=2"])
def test_limits_of_cards_are_refused(limit: str) -> None:
    with pytest.raises(UsageError, match="cards"):
        parse_limits([limit])
