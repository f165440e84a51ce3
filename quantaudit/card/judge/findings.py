"""Rules about a measurement, and all findings of a card: what measuring, loading and simulating say is wrong.

Rules about how the model was loaded are in `loading`, those about the text in `text`, those about a simulation in
`simulated`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from quantaudit.card.judge import loading, simulated, text  # noqa: F401  their rules register themselves
from quantaudit.card.judge.evidence import CardEvidence, evidence_of
from quantaudit.card.schema import Card, Finding, PeakSummary
from quantaudit.card.text import PRODUCTS, counted
from quantaudit.common.findings import Hit, apply, rule, rules_of
from quantaudit.common.outcome import SEVERITY_ORDER
from quantaudit.policy import Policy
from quantaudit.provenance import Unmeasured, UnmeasuredCause

NUMBER = re.compile(r"[0-9]{1,18}")
_EXPERTS_REMEDY = (
    "Give more text (--samples, --corpus), or run experts on all tokens with `--experts all`, as `oneshot` does when "
    "it calibrates them; or leave these experts out of the recipe."
)


def find(evidence: CardEvidence) -> list[Finding]:
    """All findings of a card, errors first, then by code."""
    findings = [Finding.of(rule.code, hit) for rule, hit in apply(rules_of("card").values(), evidence)]
    return sorted(findings, key=lambda finding: (SEVERITY_ORDER[finding.severity], finding.code))


def unlisted(card: Card, policy: Policy, codes: Collection[str]) -> Iterator[Finding]:
    """Findings of these codes that a card's own numbers call for under a policy, and that it does not list."""
    listed = {finding.code for finding in card.findings}
    wanted = [rule for code, rule in rules_of("card").items() if code in codes and code not in listed]
    yield from (Finding.of(rule.code, hit) for rule, hit in apply(wanted, evidence_of(card, policy)))


@rule(
    "QA101",
    "What no statistic covers, one finding for each kind of reason; an error where it holds weights.",
    severity="error",
    why="What was not measured cannot be declared safe.",
    remedy="Give text that reaches these modules, or leave them out of the recipe.",
)
def unmeasured(evidence: CardEvidence) -> Iterator[Hit]:
    """What no statistic covers, one hit for each kind of reason.

    A part that the model does not have is information. Reasons that differ in their numbers alone, such as how many
    tokens an expert saw, are of one kind.
    """
    kinds: dict[tuple[str, bool, bool], list[Unmeasured]] = {}
    for row in evidence.coverage.unmeasured:
        kinds.setdefault((NUMBER.sub("#", row.reason), row.weights, row.absent), []).append(row)
    for (_, weights, absent), rows in sorted(kinds.items()):
        modules = [row.module for row in rows]
        reason = common_reason([row.reason for row in rows])
        examples = f", such as {examples_of(modules)}" if len(modules) > 1 else ""
        yield Hit(
            severity="error" if weights else "info" if absent else "warning",
            module=modules[0],
            message=f"{counted(len(modules), 'module')} not measured ({reason}){examples}",
            value=float(len(modules)),
            threshold=0.0,
            why="The model has no such part, so nothing is missing." if absent else None,
            remedy=_remedy(rows[0].cause),
        )


def _remedy(cause: UnmeasuredCause) -> str | None:
    if cause == "absent":
        return "None is needed."
    return _EXPERTS_REMEDY if cause == "undersampled" else None


def common_reason(reasons: Sequence[str]) -> str:
    """Reasons of one kind as one: `expert saw 0–15 tokens, fewer than 16`, a range where their numbers differ."""
    columns = zip(*(map(int, NUMBER.findall(reason)) for reason in reasons), strict=True)
    spans = iter([f"{min(c):,}" if min(c) == max(c) else f"{min(c):,}–{max(c):,}" for c in columns])
    return NUMBER.sub(lambda _: next(spans), reasons[0])


def examples_of(modules: Sequence[str]) -> str:
    """The first, the middle and the last of them."""
    chosen = dict.fromkeys((modules[0], modules[len(modules) // 2], modules[-1]))
    return ", ".join(f"`{module}`" for module in chosen)


@rule(
    "QA102",
    "NaN or infinite activations, naming the first site of the forward pass that has them.",
    severity="error",
    why="A non-finite activation makes every later value meaningless, quantized or not.",
    remedy="Check the weights of the first such module, or load the model in a wider dtype (--dtype float32).",
)
def nonfinite(evidence: CardEvidence) -> Iterator[Hit]:
    """NaN or infinite activations, naming the first site of the forward pass that has them."""
    broken = [site for site in evidence.sites if site.nonfinite]
    if broken:
        first = broken[0]
        yield Hit(
            module=first.module,
            message=f"activations first turn NaN or infinite at `{first.name}` ({counted(len(broken), 'site')} in all)",
            value=float(first.nonfinite),
            threshold=0.0,
            remedy=f"Check the weights of `{first.module}`, or load the model in a wider dtype (--dtype float32).",
        )


@rule(
    "QA103",
    "Samples that were cut.",
    severity="info",
    why="Peaks beyond the cut were not seen.",
    remedy="Raise --max-length, as far as the model's context goes.",
)
def truncated(evidence: CardEvidence) -> Iterator[Hit]:
    """Samples that were cut."""
    corpus = evidence.provenance.corpus
    if corpus.truncated:
        limit = min(corpus.max_length, evidence.provenance.model.context_length or corpus.max_length)
        yield Hit(
            message=f"{counted(corpus.truncated, 'sample')} cut to {counted(limit, 'token')}",
            value=float(corpus.truncated),
            threshold=0.0,
        )


@rule(
    "QA105",
    "What tokenizing changed.",
    severity="info",
    why="Peaks depend on the exact tokens, above all on the first ones.",
    remedy="Audit with the tokenizer and chat template that the model is deployed with.",
)
def tokenized_differently(evidence: CardEvidence) -> Iterator[Hit]:
    """What tokenizing changed, one hit a note."""
    for note in evidence.provenance.corpus.notes:
        yield Hit(message=note)


@rule(
    "QA106",
    "Padding among the text.",
    severity="error",
    why="Padding is no text: given as tokens, its activations enter every statistic.",
    remedy="Give `input_ids` without padding; batches are padded and masked when the model runs.",
)
def padding(evidence: CardEvidence) -> Iterator[Hit]:
    """Padding among the text."""
    padded = evidence.provenance.corpus.padded
    if padded:
        yield Hit(
            message=f"{counted(len(padded), 'sample')} of the corpus begin or end in padding tokens, "
            f"such as `{padded[0]}`",
            value=float(len(padded)),
            threshold=0.0,
        )


@rule(
    "QA108",
    "Products that were computed in one way when measuring, and in another when simulating.",
    severity="info",
    why="Both round once, but not alike: static ranges differ by steps of the dtype from what would be measured under "
    "the simulation's arithmetic.",
    remedy="For equality to the last bit, measure and simulate with the same --arithmetic.",
)
def other_arithmetic(evidence: CardEvidence) -> Iterator[Hit]:
    """Products that were computed in one way when measuring, and in another when simulating."""
    if evidence.simulation is None:
        return
    before, after = evidence.provenance.environment.arithmetic, evidence.simulation.evaluation.products
    if before != after:
        yield Hit(
            message=f"measured with {PRODUCTS[before]}, simulated with {PRODUCTS[after]}",
            remedy=f"For equality to the last bit, measure and simulate with --arithmetic {after}.",
        )


@rule(
    "QA201",
    "A residual stream near or beyond FP16's largest value. It is not quantized, but it may overflow.",
    severity="warning",
    why="FP16 holds no value beyond 65,504, and the residual stream stays in the model's own dtype under every scheme.",
    remedy="Run the model in bfloat16.",
)
def fp16_headroom(evidence: CardEvidence) -> Iterator[Hit]:
    """A residual stream near or beyond FP16's largest value. It is not quantized, but it may overflow."""
    return overflows(evidence.peak, evidence.policy)


def overflows(peak: PeakSummary, policy: Policy) -> Iterator[Hit]:
    """QA201 of a peak alone: an error where FP16 overflows, else a warning where it comes near."""
    headroom, limits = peak.fp16_headroom, policy.fp16_headroom
    if headroom is None or headroom >= limits.warning:
        return
    failed = headroom < limits.error
    yield Hit(
        severity="error" if failed else "warning",
        message=f"the residual stream {'overflows' if failed else 'comes near the limit of'} FP16",
        value=headroom,
        threshold=limits.error if failed else limits.warning,
        why=limits.reason,
    )


@rule(
    "QA202",
    "Held-out text that goes beyond what a static scale was calibrated on; information where it hardly does.",
    severity="warning",
    why="A static scale clips what lies beyond the range that it was calibrated on.",
    remedy="Calibrate on more text, and of more kinds, or give these tensors per-token scales.",
)
def exceedance(evidence: CardEvidence) -> Iterator[Hit]:
    """Held-out text that goes beyond what a static scale was calibrated on; information where it hardly does."""
    stability, limit = evidence.stability, evidence.policy.calibration_excess
    if stability is not None and stability.exceedance.worst:
        worst = stability.exceedance.worst[0]
        yield Hit(
            severity="warning" if (worst.ratio or 0.0) > limit.warning else "info",
            module=worst.site.removesuffix(".input"),
            message=stability.exceedance.reading,
            value=worst.ratio,
            threshold=limit.warning,
            why=limit.reason,
        )
