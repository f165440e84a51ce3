"""A quantized checkpoint and its prediction: scales, scores, and what conformance rules say of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from quantaudit.card.schema import Card, Finding, ScaleComparison, Verification, VerifiedScore
from quantaudit.common.outcome import Outcome
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.conform.artifacts.read import read_artifact
from quantaudit.conform.artifacts.records import Artifact
from quantaudit.conform.rules.ranges import without_mask
from quantaudit.conform.run import conform
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import ModelError
from quantaudit.model.loading.load import LoadedModel
from quantaudit.policy import Policy, judge
from quantaudit.simulate.cost import COMPARING
from quantaudit.simulate.logits.score_plans import score_checkpoint, score_plans
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.records import RecipeRow
from quantaudit.verify.oneshot import load_saved, saved_parameters, with_saved_ranges
from quantaudit.verify.predict import Prediction, Scales

TOLERANCE = 0.05
"""Relative difference of the KL above which a prediction does not agree with what was saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint:
    """What llm-compressor made of a recipe. pipeline, samples: how, and on how many, it calibrated.

    without_mask: decoder layers that got no causal mask while it did.
    """

    folder: Path
    pipeline: str
    samples: int
    without_mask: tuple[str, ...]


def compare(
    base: LoadedModel,
    checkpoint: SavedCheckpoint,
    expected: Prediction,
    card: Card,
    policy: Policy,
    *,
    tolerance: float = TOLERANCE,
    stages: Stages = silent_stages,
) -> Verification:
    """What was saved, next to the prediction. base: the unquantized model, loaded again.

    Two models are in memory at a time: this one and the saved one, whose weights are decompressed. Raises ModelError.
    """
    folder, samples = checkpoint.folder, expected.samples
    saved = saved_parameters(folder)
    advance = stages(COMPARING, 2, "models")
    device = next(base.model.parameters()).device
    plan, predicted = expected.plan, expected.row
    actual = score_checkpoint(base.model, load_saved(folder, device), samples, plan)
    advance()
    rescaled = None if expected.inputs is None else _rescaled(base.model, samples, plan, saved)
    advance()
    findings = [
        *conform(_of_smoothed(read_artifact(folder, card.model.modules), expected.factors), card, policy).findings,
        *without_mask(checkpoint.without_mask),
    ]
    kl_error = None
    if actual.kl and predicted.kl is not None and not plan.unsimulated:
        kl_error = abs(predicted.kl - actual.kl) / actual.kl
    agrees, outcome, reason = conclude(predicted, actual, kl_error, findings, policy, tolerance)
    return Verification(
        recipe=plan.name,
        digest=plan.digest or "",
        pipeline=checkpoint.pipeline,
        calibration_samples=checkpoint.samples,
        tokens=actual.tokens,
        input_scales=compare_scales(expected.inputs or {}, saved, "input_scale"),
        weight_scales=compare_scales(expected.weights or {}, saved, "weight_scale"),
        predicted=_score(predicted),
        with_saved_scales=rescaled,
        actual=_score(actual),
        unpredicted=list(plan.unsimulated),
        kl_error=kl_error,
        findings=findings,
        agrees=agrees,
        outcome=outcome,
        reason=reason,
    )


def conclude(
    predicted: RecipeRow,
    actual: RecipeRow,
    kl_error: float | None,
    findings: Sequence[Finding],
    policy: Policy,
    tolerance: float,
) -> tuple[bool | None, Outcome, str]:
    """Whether the result is as predicted (None where the prediction leaves something out), what follows, and why.

    What is broken fails. What was predicted passes by the prediction alone, as that a recipe is harmful was known
    before, and is told what the policy says of it. What was not predicted is held against the policy's limits, and
    within them nothing is concluded.
    """
    incomplete = bool(predicted.unsimulated)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors or actual.kl is None:
        what = f"{errors[0].code} {errors[0].message}" if errors else "its logits are NaN or infinite"
        return None if incomplete else False, "fail", f"What was saved is broken: {what}."
    status, why = judge(policy, actual, [])
    judged = f"{status} under the policy `{policy.name}`: {why}"
    if incomplete:
        if status == "NOT READY":
            return None, "fail", f"What was saved is {judged}"
        nothing = "Part of the recipe is in no prediction, so there is none to agree with."
        return None, "inconclusive", f"{nothing} What was saved is {judged}"
    agrees = predicted.kl == actual.kl if kl_error is None else kl_error <= tolerance
    word = "agrees" if agrees else "does not agree"
    return agrees, "pass" if agrees else "fail", f"What was saved {word} with the prediction. It is {judged}"


def compare_scales(predicted: Scales, saved: Mapping[str, Tensor], leaf: str) -> ScaleComparison:
    """The worst relative difference; infinite where a scale was not saved, or is no number."""
    worst, where = 0.0, None
    for path, expected in predicted.items():
        scale = saved.get(f"{path}.{leaf}")
        if scale is None or scale.numel() != expected.numel():
            difference = float("inf")
        else:
            target = expected.double().flatten().cpu()
            error = (scale.double().flatten().cpu() - target).abs() / target.abs().clamp_min(
                torch.finfo(torch.double).tiny
            )
            difference = float(error.nan_to_num(float("inf")).max())
        if where is None or difference > worst:
            worst, where = difference, path
    return ScaleComparison(compared=len(predicted), worst=worst if predicted else None, module=where)


def _of_smoothed(artifact: Artifact, factors: Mapping[str, Tensor]) -> Artifact:
    """The artifact with what its norms divide by applied to its ranges, as the card knows no smoothed tensor."""
    inputs = [
        replace(row, factors=1.0 / factors[row.module].double().cpu().numpy()) if row.module in factors else row
        for row in artifact.inputs
    ]
    return replace(artifact, inputs=inputs)


def _rescaled(
    model: nn.Module, samples: Sequence[TokenizedSample], plan: Plan, saved: Mapping[str, Tensor]
) -> VerifiedScore | None:
    """The simulation with the scales as saved; None where one that the plan needs was not saved."""
    try:
        (row,) = score_plans(model, samples, [with_saved_ranges(plan, saved)])
    except ModelError:
        return None
    return _score(row)


def _score(row: RecipeRow) -> VerifiedScore:
    return VerifiedScore(kl=row.kl, top1=row.top1, perplexity=row.perplexity, perplexity_base=row.perplexity_base)
