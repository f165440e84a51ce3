"""Rules that look at a measurement or a simulation and say what is wrong: one finding each, under a stable code."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from quantaudit.card.schema import Coverage, Finding, PeakSummary, SiteRow, StabilityInfo
from quantaudit.policy import Policy
from quantaudit.provenance import Provenance, Unmeasured
from quantaudit.simulate.records import SchemeInfo, Simulation, TensorErrorRow

NUMBER = re.compile(r"\d+")
_ABSENT = "The model has no such part, so nothing is missing."
_UNMEASURED_REMEDY = "Give text that reaches these modules, or leave them out of the recipe."
_EXPERTS_REMEDY = (
    "Give more text (--samples, --corpus), or run experts on all tokens with `--experts all`, as `oneshot` does when "
    "it calibrates them; or leave these experts out of the recipe."
)
GOOD_SQNR_DB = 20.0
"""The SQNR that arXiv 2605.15572 takes for a pass."""
LOSS_SPREAD = 3.0
"""Standard deviation of one token's loss, in nats: what language models show on ordinary text."""


def find(
    provenance: Provenance,
    sites: Sequence[SiteRow],
    coverage: Coverage,
    peak: PeakSummary,
    simulation: Simulation | None,
    policy: Policy,
    stability: StabilityInfo | None = None,
) -> list[Finding]:
    """All findings, errors first, then by code."""
    found = [
        *unmeasured(coverage),
        *nonfinite(sites),
        *corpus_notes(provenance),
        *fp16_headroom(peak, policy),
    ]
    if stability is not None:
        found += exceedance(stability, policy)
    if simulation is not None:
        found += [
            *broken_load(provenance, simulation, policy),
            *damage(simulation, policy),
            *zeroed(simulation, policy),
        ]
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda finding: (order[finding.severity], finding.code))


def unmeasured(coverage: Coverage) -> list[Finding]:
    """QA101: what no statistic covers, one finding for each kind of reason; an error where it holds weights.

    A part that the model does not have is information. Reasons that differ in their numbers alone, such as how many
    tokens an expert saw, are of one kind.
    """
    kinds: dict[tuple[str, bool, bool], list[Unmeasured]] = {}
    for row in coverage.unmeasured:
        kinds.setdefault((NUMBER.sub("#", row.reason), row.weights, row.absent), []).append(row)
    found = []
    for (_, weights, absent), rows in sorted(kinds.items()):
        modules = [row.module for row in rows]
        reason = common_reason([row.reason for row in rows])
        examples = f", such as {examples_of(modules)}" if len(modules) > 1 else ""
        found.append(
            Finding(
                code="QA101",
                severity="error" if weights else "info" if absent else "warning",
                module=modules[0],
                message=f"{count(len(modules), 'module')} not measured ({reason}){examples}",
                value=float(len(modules)),
                threshold=0.0,
                reason=_ABSENT if absent else "What was not measured cannot be declared safe.",
                remedy=_remedy(reason, absent=absent),
            )
        )
    return found


def _remedy(reason: str, *, absent: bool) -> str:
    if absent:
        return "None is needed."
    return _EXPERTS_REMEDY if reason.startswith("expert saw") else _UNMEASURED_REMEDY


def common_reason(reasons: Sequence[str]) -> str:
    """Reasons of one kind as one: `expert saw 0–15 tokens, fewer than 16`, a range where their numbers differ."""
    columns = zip(*(map(int, NUMBER.findall(reason)) for reason in reasons), strict=True)
    spans = iter([f"{min(c):,}" if min(c) == max(c) else f"{min(c):,}–{max(c):,}" for c in columns])
    return NUMBER.sub(lambda _: next(spans), reasons[0])


def examples_of(modules: Sequence[str]) -> str:
    """The first, the middle and the last of them."""
    chosen = dict.fromkeys((modules[0], modules[len(modules) // 2], modules[-1]))
    return ", ".join(f"`{module}`" for module in chosen)


def nonfinite(sites: Sequence[SiteRow]) -> list[Finding]:
    """QA102: NaN or infinite activations, naming the first site of the forward pass that has them."""
    broken = [site for site in sites if site.nonfinite]
    if not broken:
        return []
    first = broken[0]
    return [
        Finding(
            code="QA102",
            severity="error",
            module=first.module,
            message=f"activations first turn NaN or infinite at `{first.name}` ({count(len(broken), 'site')} in all)",
            value=float(first.nonfinite),
            threshold=0.0,
            reason="A non-finite activation makes every later value meaningless, quantized or not.",
            remedy=f"Check the weights of `{first.module}`, or load the model in a wider dtype (--dtype float32).",
        )
    ]


def corpus_notes(provenance: Provenance) -> list[Finding]:
    """QA103: samples that were cut; QA105: what tokenizing changed; QA106: padding among the text."""
    corpus = provenance.corpus
    found = []
    if corpus.padded:
        found.append(
            Finding(
                code="QA106",
                severity="error",
                module=None,
                message=(
                    f"{count(len(corpus.padded), 'sample')} of the corpus begin or end in padding tokens, "
                    f"such as `{corpus.padded[0]}`"
                ),
                value=float(len(corpus.padded)),
                threshold=0.0,
                reason="Padding is no text: given as tokens, its activations enter every statistic.",
                remedy="Give `input_ids` without padding; batches are padded and masked when the model runs.",
            )
        )
    if corpus.truncated:
        limit = min(corpus.max_length, provenance.model.context_length or corpus.max_length)
        found.append(
            Finding(
                code="QA103",
                severity="info",
                module=None,
                message=f"{count(corpus.truncated, 'sample')} cut to {limit:,} tokens",
                value=float(corpus.truncated),
                threshold=0.0,
                reason="Peaks beyond the cut were not seen.",
                remedy="Raise --max-length, as far as the model's context goes.",
            )
        )
    found += [
        Finding(
            code="QA105",
            severity="info",
            module=None,
            message=note,
            value=None,
            threshold=None,
            reason="Peaks depend on the exact tokens, above all on the first ones.",
            remedy="Audit with the tokenizer and chat template that the model is deployed with.",
        )
        for note in corpus.notes
    ]
    return found


def fp16_headroom(peak: PeakSummary, policy: Policy) -> list[Finding]:
    """QA201: a residual stream near or beyond FP16's largest value. It is not quantized, but it may overflow."""
    headroom = peak.fp16_headroom
    if headroom is None or headroom >= policy.fp16_headroom.warning:
        return []
    failed = headroom < policy.fp16_headroom.error
    return [
        Finding(
            code="QA201",
            severity="error" if failed else "warning",
            module=None,
            message=f"the residual stream {'overflows' if failed else 'comes near the limit of'} FP16",
            value=headroom,
            threshold=policy.fp16_headroom.error if failed else policy.fp16_headroom.warning,
            reason=policy.fp16_headroom.reason,
            remedy="Run the model in bfloat16.",
        )
    ]


def exceedance(stability: StabilityInfo, policy: Policy) -> list[Finding]:
    """QA202: held-out text that goes beyond what a static scale was calibrated on; information where it hardly does."""
    if not stability.exceedance.worst:
        return []
    worst = stability.exceedance.worst[0]
    limit = policy.calibration_excess
    return [
        Finding(
            code="QA202",
            severity="warning" if (worst.ratio or 0.0) > limit.warning else "info",
            module=worst.site.removesuffix(".input"),
            message=stability.exceedance.reading,
            value=worst.ratio,
            threshold=limit.warning,
            reason=limit.reason,
            remedy="Calibrate on more text, and of more kinds, or give these tensors per-token scales.",
        )
    ]


def broken_load(provenance: Provenance, simulation: Simulation, policy: Policy) -> list[Finding]:
    """QA104: a model that predicts the evaluation text worse than token frequencies do.

    An infinite perplexity is null in a record; there, the logits are finite nevertheless. Not finite ones are QA102's.
    """
    row = next(iter(simulation.recipes), None)
    if row is None or (row.perplexity_base is None and row.kl is None):
        return []
    perplexity = math.inf if row.perplexity_base is None else row.perplexity_base
    evaluation = simulation.evaluation
    guessing = evaluation.unigram_perplexity or float(provenance.model.vocab_size)
    limit = policy.perplexity_over_unigram.error * guessing * chance(evaluation.tokens - len(evaluation.samples))
    if perplexity <= limit:
        return []
    return [
        Finding(
            code="QA104",
            severity="error",
            module=None,
            message=(
                f"the unquantized model predicts the text worse than token frequencies do "
                f"(perplexity {perplexity:,.0f} against {guessing:,.0f})"
            ),
            value=perplexity,
            threshold=limit,
            reason=policy.perplexity_over_unigram.reason,
            remedy=(
                "Check that weights and tokenizer belong together and were converted completely; of a GGUF, audit the "
                "original checkpoint instead."
            ),
        )
    ]


def chance(tokens: int) -> float:
    """Factor by which a perplexity over so many tokens may be too high by chance: two standard errors of its log."""
    return math.exp(2 * LOSS_SPREAD / math.sqrt(max(tokens, 1)))


def damage(simulation: Simulation, policy: Policy) -> list[Finding]:
    """QA301: fused groups whose quantization alone damages their block, one finding for each scheme."""
    found = []
    for scheme in simulation.schemes:
        rows = [
            (row.damage, row.group)
            for row in simulation.groups
            if row.scheme == scheme.name and row.damage is not None and row.damage > policy.damage.warning
        ]
        if rows:
            worst, group = max(rows)
            found.append(
                Finding(
                    code="QA301",
                    severity="warning",
                    module=group,
                    message=f"{scheme.title} damages {count(len(rows), 'fused group')} noticeably, `{group}` most",
                    value=worst,
                    threshold=policy.damage.warning,
                    reason=policy.damage.reason,
                    remedy="Give these groups per-token scales, or leave them unquantized.",
                )
            )
    return found


def zeroed(simulation: Simulation, policy: Policy) -> list[Finding]:
    """QA302: tensors that a static scheme rounds to zero, telling how many of them an SQNR check would pass."""
    found = []
    for scheme in simulation.schemes:
        rows = zeroed_tensors(simulation, scheme, policy)
        if rows:
            share, worst = rows[0]
            hidden = sum((row.sqnr_db or 0.0) >= GOOD_SQNR_DB for _, row in rows)
            found.append(
                Finding(
                    code="QA302",
                    severity="warning",
                    module=worst.group,
                    message=(
                        f"{scheme.title} rounds most values of {count(len(rows), 'tensor')} to zero "
                        f"(`{worst.group}`: {percent(share)}); {hidden} of them would pass an SQNR check"
                    ),
                    value=share,
                    threshold=policy.zeroed_fraction.warning,
                    reason=policy.zeroed_fraction.reason,
                    remedy="Give these tensors per-token scales; a percentile clip would cut off the peaks instead.",
                )
            )
    return found


def zeroed_tensors(simulation: Simulation, scheme: SchemeInfo, policy: Policy) -> list[tuple[float, TensorErrorRow]]:
    """(zeroed fraction, row) of the tensors beyond the policy's limit under a static scheme, worst first."""
    rows = [
        (row.zeroed_fraction, row)
        for row in simulation.sites
        if row.scheme == scheme.name
        and row.observer == scheme.observer
        and row.zeroed_fraction is not None
        and row.zeroed_fraction > policy.zeroed_fraction.warning
    ]
    return sorted(rows, key=lambda pair: -pair[0])


def count(number: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(share: float) -> str:
    """A share in words that never turn "nearly all" into "all"."""
    return "all but a few" if 0.9999 < share < 1 else f"{share:.2%}"
