"""Rules that look at a measurement and say what is wrong: one finding each, under a stable code.

Those that look at how the model was loaded are in `loading`, those that look at a simulation in `simulated`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantaudit.card.judge.loading import no_weights, other_class, reads_ahead, unused_tensors
from quantaudit.card.judge.simulated import broken_load, damage, few_tokens, zeroed
from quantaudit.card.schema import Coverage, Finding, PeakSummary, SiteRow, StabilityInfo
from quantaudit.card.text import PRODUCTS, counted
from quantaudit.common.outcome import SEVERITY_ORDER
from quantaudit.policy import Policy
from quantaudit.provenance import Provenance, Unmeasured
from quantaudit.simulate.records import Simulation

NUMBER = re.compile(r"\d+")
_ABSENT = "The model has no such part, so nothing is missing."
_UNMEASURED_REMEDY = "Give text that reaches these modules, or leave them out of the recipe."
_EXPERTS_REMEDY = (
    "Give more text (--samples, --corpus), or run experts on all tokens with `--experts all`, as `oneshot` does when "
    "it calibrates them; or leave these experts out of the recipe."
)


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
        *other_class(provenance),
        *unused_tensors(provenance),
        *no_weights(provenance),
        *reads_ahead(provenance),
        *corpus_notes(provenance),
        *fp16_headroom(peak, policy),
    ]
    if stability is not None:
        found += exceedance(stability, policy)
    if simulation is not None:
        found += [
            *other_arithmetic(provenance, simulation),
            *broken_load(provenance, simulation, policy),
            *few_tokens(simulation, policy),
            *damage(simulation, policy),
            *zeroed(simulation, policy),
        ]
    return sorted(found, key=lambda finding: (SEVERITY_ORDER[finding.severity], finding.code))


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
                message=f"{counted(len(modules), 'module')} not measured ({reason}){examples}",
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
            message=f"activations first turn NaN or infinite at `{first.name}` ({counted(len(broken), 'site')} in all)",
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
                    f"{counted(len(corpus.padded), 'sample')} of the corpus begin or end in padding tokens, "
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
                message=f"{counted(corpus.truncated, 'sample')} cut to {limit:,} tokens",
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


def other_arithmetic(provenance: Provenance, simulation: Simulation) -> list[Finding]:
    """QA108: products that were computed in one way when measuring, and in another when simulating."""
    measured, simulated = provenance.environment.arithmetic, simulation.evaluation.products
    if measured == simulated:
        return []
    return [
        Finding(
            code="QA108",
            severity="info",
            module=None,
            message=f"measured with {PRODUCTS[measured]}, simulated with {PRODUCTS[simulated]}",
            value=None,
            threshold=None,
            reason="Both round once, but not alike: static ranges differ by steps of the dtype from what would be "
            "measured under the simulation's arithmetic.",
            remedy=f"For equality to the last bit, measure and simulate with --arithmetic {simulated}.",
        )
    ]


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
