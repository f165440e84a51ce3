"""Rules that look at a simulation and say what is wrong: one finding each, under a stable code."""

from __future__ import annotations

import math

from quantaudit.card.schema import Finding
from quantaudit.card.text import counted, share_in_words
from quantaudit.common.rounding import significant
from quantaudit.policy import Policy
from quantaudit.provenance import Provenance
from quantaudit.simulate.records import RecipeRow, SchemeInfo, Simulation, TensorErrorRow

GOOD_SQNR_DB = 20.0
"""The SQNR that arXiv 2605.15572 takes for a pass."""
LOSS_SPREAD = 3.0
"""Standard deviation of one token's loss, in nats: what language models show on ordinary text."""
FEWEST_SAMPLES = 2
"""Samples below which no standard error can be told."""


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


def few_tokens(simulation: Simulation, policy: Policy) -> list[Finding]:
    """QA107: on how many tokens the verdicts rest, where they are few or a KL lies too near a limit; with its error."""
    names = {scheme.name for scheme in simulation.schemes}
    scored = [row for row in simulation.recipes if row.name in names and row.kl is not None]
    if not scored:
        return []
    evaluation, limit = simulation.evaluation, policy.evaluation
    row, distance = min(((row, _errors_to_limit(row, policy)) for row in scored), key=lambda pair: pair[1])
    few = evaluation.tokens < limit.tokens or len(evaluation.samples) < FEWEST_SAMPLES
    if not few and distance >= limit.errors:
        return []
    error = "unknown" if row.kl_stderr is None else f"{row.kl_stderr:.2g}"
    message = (
        f"the verdicts rest on {counted(evaluation.tokens, 'token')} of {counted(len(evaluation.samples), 'sample')}; "
        f"the KL of {row.title} is {significant(row.kl or 0.0, *policy.kl.both)} nats with a standard error of {error}"
    )
    if distance < limit.errors:
        message += ", too near a limit to tell the sides apart"
    return [
        Finding(
            code="QA107",
            severity="warning" if few else "info",
            module=None,
            message=message,
            value=float(evaluation.tokens),
            threshold=float(limit.tokens),
            reason=limit.reason,
            remedy="Raise --evaluation-tokens, and give more samples of the text that the model is used on.",
        )
    ]


def _errors_to_limit(row: RecipeRow, policy: Policy) -> float:
    """How many standard errors lie between a KL and the nearest limit of a verdict; infinite where none is known."""
    if row.kl is None or not row.kl_stderr:
        return math.inf
    return min(abs(row.kl - limit) for limit in (policy.kl.ready, policy.kl.care)) / row.kl_stderr


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
                    message=f"{scheme.title} damages {counted(len(rows), 'fused group')} noticeably, `{group}` most",
                    value=worst,
                    threshold=policy.damage.warning,
                    reason=policy.damage.reason,
                    remedy=_gentler(scheme),
                )
            )
    return found


def _gentler(scheme: SchemeInfo) -> str:
    """What hurts less than a scheme: a scale for each token, where it has none; else to leave groups alone."""
    inputs = scheme.input_activations
    if inputs is None:
        return "Give weights more bits or smaller groups, or leave these groups unquantized."
    if inputs.get("dynamic") and inputs.get("strategy") == "token":
        return "Quantize the weights of these groups alone, or leave them unquantized."
    return "Give these groups per-token scales, or leave them unquantized."


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
                        f"{scheme.title} rounds most values of {counted(len(rows), 'tensor')} to zero "
                        f"(`{worst.group}`: {share_in_words(share, policy.zeroed_fraction.warning)}); {hidden} of "
                        "them would pass an SQNR check"
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
