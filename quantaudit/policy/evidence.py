"""What a score rests on: intervals of its KL and top-1, and how much text would place the KL on one side of a limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantaudit.policy.sections import EvidenceRules, Policy
from quantaudit.provenance import CorpusInfo
from quantaudit.simulate.records import RecipeRow
from quantaudit.stats.interval import MOST_SAMPLES, Interval, mean_interval, samples_to_decide

HOPE = 2
"""How many times the tokens that a corpus holds may be needed, for those to be worth a try: how much is needed is an
estimate itself.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enough:
    """How much evaluation text most likely decides: samples and tokens, with those of a sample as now.

    held: tokens that the corpus holds for evaluation, or the part of it that was taken; None where that is not known.
    evaluated: those that were. taken, available: samples of the corpus where a part of it was taken, and all of them.
    """

    samples: int
    tokens: int
    evaluated: int
    held: int | None = None
    taken: int = 0
    available: int = 0

    def __str__(self) -> str:
        """What to evaluate, as a sentence."""
        if self.samples >= MOST_SAMPLES:
            return (
                "It lies so near the limit that more text cannot be expected to decide it: choose the limit knowingly."
            )
        amount = f"{self.tokens:,} evaluation tokens (some {self.samples:,} samples)"
        if self.held is not None and self.tokens > self.held and self.taken < self.available:
            return (
                f"About {amount} would most likely decide it, more than the {self.held:,} that {self.taken:,} of "
                f"{self.available:,} samples hold for evaluation: {self._more_of_it(self.held)}or a limit that is "
                "further away."
            )
        if self.held is not None and self.tokens > self.held:
            tried = self.evaluated >= self.held or self.tokens > HOPE * self.held
            first = "" if tried else f"those may do (--evaluation-tokens {self.held}); else "
            return (
                f"About {amount} would most likely decide it, more than the {self.held:,} that this corpus holds for "
                f"evaluation: {first}give more text, or a limit that is further away."
            )
        return f"About {amount} would most likely decide it: --evaluation-tokens {self.tokens}."

    def _more_of_it(self, held: int) -> str:
        """How more of the corpus is taken, as far as it reaches. held: tokens of the part that was taken."""
        most = held * self.available // self.taken
        if self.tokens <= most:
            count = min(math.ceil(self.taken * self.tokens / max(held, 1)), self.available)
            return f"give --samples {count} --evaluation-tokens {self.tokens}, "
        if self.tokens <= HOPE * most:
            options = f"--samples {self.available} --evaluation-tokens {self.tokens}"
            return f"all of them may do ({options}); else give more text, "
        return "give more text, "


def kl_interval(row: RecipeRow, rules: EvidenceRules) -> Interval | None:
    """The interval of a KL, nats per token; None where it, or its standard error, is not known."""
    if row.kl is None or row.kl_stderr is None or row.samples < 2:
        return None
    return mean_interval(row.kl, row.kl_stderr, row.samples, rules.level)


def top1_interval(row: RecipeRow, rules: EvidenceRules) -> Interval | None:
    """The interval of the share of top-1 tokens kept; None where that is not known, or of a single sample."""
    stderr = top1_stderr(row)
    if row.top1 is None or stderr is None:
        return None
    return mean_interval(row.top1, stderr, row.samples, rules.level, most=1.0)


def top1_stderr(row: RecipeRow) -> float | None:
    """Standard error of the share of top-1 tokens kept, over samples; None for a single sample.

    Where all tokens stayed, or none, that of a share with one token otherwise. Rows of before it was recorded are given
    that over domains, or where these are few, the largest that so many samples allow: as if all tokens of a sample
    stayed or changed together.
    """
    if row.top1 is None or row.samples < 2 or row.tokens < 1:
        return None
    if row.top1 in (0.0, 1.0):
        return one_otherwise(row.tokens)
    if row.top1_stderr is not None:
        return row.top1_stderr
    domains = [(score.tokens, score.top1) for score in row.domains.values() if score.top1 is not None]
    if len(domains) < FEW_DOMAINS or sum(tokens for tokens, _ in domains) != row.tokens:
        return math.sqrt(row.top1 * (1 - row.top1) / row.samples)
    spread = sum((tokens * (share - row.top1)) ** 2 for tokens, share in domains)
    return math.sqrt(spread * len(domains) / (len(domains) - 1)) / row.tokens


def one_otherwise(tokens: int) -> float:
    """Standard error of a share of so many tokens with one more otherwise: of a share that is all or none, the spread
    over samples is 0, and says nothing.
    """
    other = 1 / (tokens + 1)
    return math.sqrt(other * (1 - other) / tokens)


FEW_DOMAINS = 8
"""Domains below which their spread says too little about that between samples."""


def too_few(tokens: int, samples: int, rules: EvidenceRules) -> str | None:
    """Why a score rests on too little text to show that it is good, as a sentence; None where it does not."""
    if tokens >= rules.tokens and samples >= rules.samples:
        return None
    least = max(rules.tokens, math.ceil(rules.samples * tokens / max(samples, 1)))
    return (
        f"It rests on {tokens:,} evaluation tokens of {samples:,} sample{'' if samples == 1 else 's'}; a "
        f"verdict takes {rules.tokens:,} tokens of {rules.samples:,} samples at least: --evaluation-tokens {least} or "
        "more, and text of as many samples."
    )


def enough(policy: Policy, row: RecipeRow, corpus: CorpusInfo | None = None) -> Enough | None:
    """How much text would most likely decide all that is open about a row; None where nothing is, or nobody knows.

    corpus: which text there is. A limit that cannot change the verdict, because top-1 is worse than
    it, is not waited for.
    """
    outlook = look(policy, row)
    if outlook is None or row.kl is None:
        return None
    level, samples, stderr = policy.evaluation.level, row.samples, row.kl_stderr or 0.0
    needed = [samples_to_decide(abs(row.kl - limit), stderr, samples, level) for limit in outlook.open_kl]
    if not needed:
        return None
    wanted = max(*needed, policy.evaluation.samples)
    return Enough(
        samples=wanted,
        tokens=_rounded_up(max(wanted * _tokens_of_a_sample(row, wanted, corpus), policy.evaluation.tokens)),
        evaluated=row.tokens,
        held=None if corpus is None else corpus.evaluation.tokens,
        taken=0 if corpus is None else corpus.samples,
        available=0 if corpus is None else corpus.available or 0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a row leaves possible: 0 READY, 1 READY WITH CARE, 2 NOT READY, from best to worst.

    By the interval of its KL, and by top-1 as it was counted: a share of so few tokens has an interval, shown with it,
    that is wider than what lies between its limits, and where the KL is certain it says little more. open_kl: the
    limits that the KL's interval crosses and that still matter, which those are not that top-1 has missed. harmful:
    whether an interval lies wholly beyond the limits of care.
    """

    kl: Interval
    top1: Interval
    best: int
    worst: int
    open_kl: tuple[float, ...]
    harmful: bool


def look(policy: Policy, row: RecipeRow) -> Outlook | None:
    """What a row leaves possible; None where one of its intervals is not known."""
    kl, top1 = kl_interval(row, policy.evaluation), top1_interval(row, policy.evaluation)
    if kl is None or top1 is None:
        return None
    best, worst = (sum(end > limit for limit in policy.kl.both) for end in (kl.low, kl.high))
    by_top1 = sum((row.top1 or 0.0) < limit for limit in policy.top1.both)
    return Outlook(
        kl=kl,
        top1=top1,
        best=max(best, by_top1),
        worst=max(worst, by_top1),
        open_kl=tuple(limit for limit in policy.kl.both[by_top1:] if kl.low <= limit < kl.high),
        harmful=kl.low > policy.kl.care or top1.high < policy.top1.care,
    )


def _tokens_of_a_sample(row: RecipeRow, samples: int, corpus: CorpusInfo | None) -> float:
    """Mean tokens of a sample. Of large budgets single samples are cut less, and may have the corpus' own length."""
    now = row.tokens / row.samples
    text = None if corpus is None else corpus.evaluation
    whole = now if text is None or not text.samples else text.tokens / text.samples
    return max(now, whole) if samples * now > CUT_ALIKE else now


CUT_ALIKE = 4096
"""Evaluation tokens up to which every sample is cut at the same length (`simulate.evaluation.sample_cap`)."""


def _rounded_up(tokens: float) -> int:
    """To two significant digits: it is no more exact than that."""
    unit = int(10 ** max(len(str(math.ceil(tokens))) - 2, 0))
    return math.ceil(tokens / unit) * unit
