"""Predicted against actual: llm-compressor runs a recipe, and what it saved is read back, checked and scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn

from quantaudit.card.schema import Card, Finding, ScaleComparison, Verification, VerifiedScore
from quantaudit.common.outcome import Outcome
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.conform.artifacts.read import read_artifact
from quantaudit.conform.artifacts.records import Artifact
from quantaudit.conform.rules.ranges import without_mask
from quantaudit.conform.run import conform
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import ModelError
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.arithmetic import arithmetic_now
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.policy import Policy, judge
from quantaudit.quant.schemes import global_scaled
from quantaudit.quant.weights import weight_range
from quantaudit.recipe.resolve import Resolution
from quantaudit.simulate.logits.score_plans import score_checkpoint, score_plans
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.quantized.recipe_plan import recipe_plan
from quantaudit.simulate.quantized.smoothquant import smoothed
from quantaudit.simulate.records import RecipeRow
from quantaudit.verify.oneshot import Pipeline, load_saved, run_oneshot, saved_parameters, with_saved_ranges

TOLERANCE = 0.05
"""Relative difference of the KL above which a prediction does not agree with what was made."""

TRUE_TO_SCALE = {"QuantizationModifier", "GPTQModifier"}
"""Modifiers that take scales of the weights and inputs that were measured. GPTQ chooses other codes under the scales of
rounding to nearest; any other modifier changes weights, inputs, or the scales themselves before they are saved."""

CALIBRATION_ATTENTION = "eager"
"""What llm-compressor switches to for every calibration pass."""

Scales = dict[str, Tensor]
"""By module path: the scale of its input [1], or of its weight, in the shape it is saved in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is expected of a recipe, taken before the model is changed.

    plan, row: from the card's profile. inputs, weights: scales as llm-compressor's own calibration will see them; None
    where the recipe has them taken of something else than was measured. factors: by module path, what the channels of
    its input are divided by beforehand, [in_features].
    """

    plan: Plan
    row: RecipeRow
    inputs: Scales | None
    weights: Scales | None
    factors: Mapping[str, Tensor]


def predict(
    loaded: LoadedModel,
    profile: Profile,
    corpus: TokenizedCorpus,
    samples: Sequence[TokenizedSample],
    resolution: Resolution,
    name: str,
    stages: Stages = silent_stages,
) -> Prediction:
    """The score that the card's profile promises, and the scales of every input and weight.

    Of what the plan leaves out (`plan.unsimulated`) there is no promise: the score is of the rest.
    """
    recipe, groups = resolution.as_recipe(name), discover(loaded.model).groups
    plan = recipe_plan(recipe, loaded.model, groups, profile, corpus.samples, stages=stages)
    advance = stages("predicting", len(samples), "samples")
    (row,) = score_plans(loaded.model, samples, [plan], progress=advance)
    if not {change.modifier for change in resolution.unsimulated} <= TRUE_TO_SCALE:
        return Prediction(plan=plan, row=row, inputs=None, weights=None, factors={})
    inputs = _input_scales(plan)
    calibrated = plan
    environment, arithmetic = profile.provenance.environment, arithmetic_now(loaded.model)
    alike = (environment.attention, environment.arithmetic) == (CALIBRATION_ATTENTION, arithmetic)
    if (inputs or plan.smoothed) and not alike:
        replayed = replay(loaded, profile, corpus, stages)
        calibrated = recipe_plan(recipe, loaded.model, groups, replayed, corpus.samples, stages=stages)
        inputs = _input_scales(calibrated)
    with smoothed(loaded.model, calibrated.smoothed) as factors:
        weights = weight_scales(loaded.model, resolution.schemes)
    return Prediction(plan=plan, row=row, inputs=inputs, weights=weights, factors=factors)


def replay(loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, stages: Stages = silent_stages) -> Profile:
    """The calibration samples measured again under the attention and arithmetic that llm-compressor calibrates with.

    Implementations of attention and of products differ by rounding, and scales with them: by steps of the checkpoint's
    dtype.
    """
    calibration = tuple(sample for sample in corpus.samples if sample.split == "calibration")
    advance = stages("calibrating anew", sum(len(sample.ids) for sample in calibration), "tokens")
    with eager_attention(loaded.model):
        return measure(
            loaded,
            replace(corpus, samples=calibration),
            seed=profile.provenance.environment.seed,
            experts=profile.experts or "routed",
            progress=advance,
        )


def clear(folder: Path) -> None:
    """Remove the weights of an earlier checkpoint, and the index of its shards, which saving does not replace."""
    for pattern in ("model*.safetensors", "model*.safetensors.index.json"):
        for path in folder.glob(pattern):
            path.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How llm-compressor calibrated. samples: their number; without_mask: decoder layers that got no causal mask."""

    pipeline: str
    samples: int
    without_mask: tuple[str, ...]


def make(
    loaded: LoadedModel, recipe: Path, samples: Iterable[TokenizedSample], folder: Path, *, pipeline: Pipeline
) -> Calibration:
    """Quantize the model in place on the corpus's calibration samples, in their order, and save it."""
    calibration = [sample for sample in samples if sample.split == "calibration"]
    without_mask = run_oneshot(loaded, recipe, calibration, folder, pipeline=pipeline)
    return Calibration(pipeline=pipeline, samples=len(calibration), without_mask=tuple(without_mask))


def compare(
    base: LoadedModel,
    folder: Path,
    samples: Sequence[TokenizedSample],
    expected: Prediction,
    calibration: Calibration,
    card: Card,
    policy: Policy,
    *,
    tolerance: float = TOLERANCE,
    stages: Stages = silent_stages,
) -> Verification:
    """What was saved in `folder`, beside the prediction. base: the model as it was before, loaded anew.

    Two models are in memory at a time: this one and the saved one, whose weights are decompressed. Raises ModelError.
    """
    saved = saved_parameters(folder)
    advance = stages("scoring the saved checkpoint", 2, "models")
    device = next(base.model.parameters()).device
    plan, predicted = expected.plan, expected.row
    actual = score_checkpoint(base.model, load_saved(folder, device), samples, plan)
    advance()
    rescaled = None if expected.inputs is None else _rescaled(base.model, samples, plan, saved)
    advance()
    findings = [
        *conform(_of_smoothed(read_artifact(folder, card.model.modules), expected.factors), card, policy).findings,
        *without_mask(calibration.without_mask),
    ]
    kl_error = None
    if actual.kl and predicted.kl is not None and not plan.unsimulated:
        kl_error = abs(predicted.kl - actual.kl) / actual.kl
    agrees, outcome, reason = conclude(predicted, actual, kl_error, findings, policy, tolerance)
    return Verification(
        recipe=plan.name,
        digest=plan.digest or "",
        pipeline=calibration.pipeline,
        calibration_samples=calibration.samples,
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

    What is broken fails. What was predicted is held against the prediction alone: that a recipe is harmful was known
    before. What was not is held against the policy's limits, and within them nothing is concluded.
    """
    incomplete = bool(predicted.unsimulated)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors or actual.kl is None:
        what = f"{errors[0].code} {errors[0].message}" if errors else "its logits are NaN or infinite"
        return None if incomplete else False, "fail", f"What was saved is broken: {what}."
    if incomplete:
        status, why = judge(policy, actual, [])
        told = f"What was saved is {status} under the policy `{policy.name}`: {why}"
        if status == "NOT READY":
            return None, "fail", told
        return None, "inconclusive", f"Part of the recipe is in no prediction, so there is none to agree with. {told}"
    agrees = predicted.kl == actual.kl if kl_error is None else kl_error <= tolerance
    word = "agrees" if agrees else "does not agree"
    return agrees, "pass" if agrees else "fail", f"What was saved {word} with the prediction."


@torch.no_grad()
def weight_scales(model: nn.Module, schemes: Mapping[str, QuantizationScheme]) -> Scales:
    """The scale that llm-compressor will save for every weight, where no global scale is shared."""
    found: Scales = {}
    for path, scheme in schemes.items():
        module = model.get_submodule(path)
        if scheme.weights is not None and isinstance(module, nn.Linear) and not global_scaled(scheme.weights):
            found[path], _ = calculate_qparams(*weight_range(module.weight, scheme.weights), scheme.weights)
    return found


def compare_scales(predicted: Scales, saved: Mapping[str, Tensor], leaf: str) -> ScaleComparison:
    """The worst relative difference; infinite where a scale was not saved, or is no number."""
    worst, where = 0.0, None
    for path, expected in predicted.items():
        found = saved.get(f"{path}.{leaf}")
        if found is None or found.numel() != expected.numel():
            difference = float("inf")
        else:
            want = expected.double().flatten().cpu()
            error = (found.double().flatten().cpu() - want).abs() / want.abs().clamp_min(torch.finfo(torch.double).tiny)
            difference = float(error.nan_to_num(float("inf")).max())
        if where is None or difference > worst:
            worst, where = difference, path
    return ScaleComparison(compared=len(predicted), worst=worst if predicted else None, module=where)


def _of_smoothed(artifact: Artifact, factors: Mapping[str, Tensor]) -> Artifact:
    """The artifact with what its norms divide by told to its ranges, as the card knows no smoothed tensor."""
    inputs = [
        replace(row, factors=1.0 / factors[row.module].double().cpu().numpy()) if row.module in factors else row
        for row in artifact.inputs
    ]
    return replace(artifact, inputs=inputs)


def _input_scales(plan: Plan) -> Scales:
    return {
        path: qparams.scale
        for path, qparams in plan.qparams.items()
        if qparams is not None and qparams.global_scale is None
    }


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
    return VerifiedScore(kl=row.kl, top1=row.top1, perplexity=row.perplexity)
