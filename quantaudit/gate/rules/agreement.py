"""QA517: whether the scores that a gate would use agree with themselves and with the card's verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantaudit.common.findings import Hit, rule
from quantaudit.simulate.records import RecipeRow

if TYPE_CHECKING:
    from quantaudit.card.schema import Card, SchemeVerdict
    from quantaudit.gate.evidence import Evidence

CLOSE, ROUNDED = 1e-6, 1e-7
"""Relative, and absolute, difference up to which two scores are one that was summed in two ways."""
LEAST_SPREAD = 1e-9
"""Standard error over a KL, below which its samples were all of one text."""


@rule(
    "QA517",
    "The card contradicts itself",
    severity="inconclusive",
    why="Scores of one run agree: the whole is the mean of its domains, no standard error is smaller than the domains "
    "lie apart, and verdicts repeat what was simulated. Where they do not, one of them was changed.",
    remedy="Make the card, or the simulation, again, and do not edit it.",
)
def contradictory(evidence: Evidence) -> Iterator[Hit]:
    """The scores of the row that the gate uses, those that its estimate rests on, and the verdicts of the card."""
    card = evidence.card
    rows = list(card.simulation.recipes) if card.simulation is not None else []
    if evidence.measured is not None and evidence.measured not in rows:
        rows.append(evidence.measured)
    problems = [f"{row.name}: {text}" for row in rows for text in score_problems(row, redacted=card.corpus.redacted)]
    problems += verdict_differences(card)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        yield Hit(message=f"{'; '.join(problems[:3])}{more}", value=float(len(problems)))


def score_problems(row: RecipeRow, *, redacted: bool) -> Iterator[str]:
    """What in the score of a recipe cannot be of one run, as clauses. redacted: whether domains may be left out."""
    if row.kl is not None and row.top1 is None:
        yield "its KL is known, and top-1 is not"
    if row.kl and row.samples > 1 and row.kl_stderr is not None and row.kl_stderr < LEAST_SPREAD * row.kl:
        yield f"a standard error of {row.kl_stderr:g} over {row.samples:,} samples"
    scores = list(row.domains.values())
    held = sum(score.tokens for score in scores)
    if held > row.tokens or (held < row.tokens and not redacted):
        yield f"{row.tokens:,} tokens, where its domains hold {held:,}"
        return
    samples = [score.samples for score in scores if score.samples is not None]
    if held < row.tokens or not held:
        return
    if len(samples) == len(scores) and sum(samples) != row.samples:
        yield f"{row.samples:,} samples, where its domains hold {sum(samples):,}"
        return
    yield from _mean_problems("KL", row, row.kl, [score.kl for score in scores], row.kl_stderr)
    yield from _mean_problems("top-1", row, row.top1, [score.top1 for score in scores], row.top1_stderr)


def _mean_problems(
    name: str, row: RecipeRow, whole: float | None, parts: list[float | None], stderr: float | None
) -> Iterator[str]:
    """A mean that is not that of its domains, or whose standard error is smaller than they allow.

    With n_d tokens of m_d samples in domain d, and R_d and R the means, the spread between samples Σ (s − n·R)² is at
    least Σ_d n_d²·(R_d − R)² / m_d, by Cauchy and Schwarz within each domain.
    """
    known = [part for part in parts if part is not None]
    if whole is None or len(known) < len(parts):
        if whole is not None:
            yield f"its {name} is known, and that of a domain is not"
        return
    scores = list(row.domains.values())
    mean = sum(part * score.tokens for part, score in zip(known, scores, strict=True)) / row.tokens
    if not math.isclose(mean, whole, rel_tol=CLOSE, abs_tol=ROUNDED):
        yield f"{name} {whole:.6g}, where its domains make it {mean:.6g}"
    if stderr is None or row.samples < 2 or any(not score.samples for score in scores):
        return
    spread = sum(
        (score.tokens * (part - mean)) ** 2 / (score.samples or 1) for part, score in zip(known, scores, strict=True)
    )
    least = math.sqrt(spread * row.samples / (row.samples - 1)) / row.tokens
    if stderr < least * (1 - CLOSE) - ROUNDED:
        yield f"a standard error of {name} of {stderr:.3g}, where its domains alone make it {least:.3g}"


def verdict_differences(card: Card) -> Iterator[str]:
    """Verdicts whose numbers are not those of their scheme's recipe, or whose status is better than their limits."""
    rows = {row.name: row for row in card.simulation.recipes} if card.simulation is not None else {}
    for verdict in card.verdict.schemes:
        yield from _other_numbers(verdict, rows.get(verdict.scheme))
        if verdict.status in PASSING and len(card.verdict.limits.kl) == len(card.verdict.limits.top1) == 2:
            side = PASSING.index(verdict.status)
            kl, top1 = card.verdict.limits.kl[side], card.verdict.limits.top1[side]
            if verdict.kl is None or verdict.top1 is None or verdict.kl > kl or verdict.top1 < top1:
                yield f"{verdict.title} is {verdict.status} beyond the limits that it names"


PASSING = ("READY", "READY WITH CARE")


def _other_numbers(verdict: SchemeVerdict, row: RecipeRow | None) -> Iterator[str]:
    names = {"kl": "KL", "top1": "top-1", "perplexity": "perplexity", "perplexity_base": "perplexity before"}
    for field, name in names.items():
        ours, theirs = getattr(verdict, field), None if row is None else getattr(row, field)
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None or not math.isclose(ours, theirs, rel_tol=CLOSE):
            yield f"the verdict of {verdict.title} has another {name} ({ours}) than its simulation ({theirs})"
