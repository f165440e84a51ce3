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
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import ModelError
from quantaudit.measure import measure
from quantaudit.model.attention import eager_attention
from quantaudit.model.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.policy import Policy
from quantaudit.profile import Profile
from quantaudit.progress import Stages, silent_stages
from quantaudit.quant.schemes import global_scaled
from quantaudit.quant.weights import weight_range
from quantaudit.recipe.artifact.read import read_artifact
from quantaudit.recipe.artifact.records import Artifact
from quantaudit.recipe.conform import conform
from quantaudit.recipe.conform_rules import without_mask
from quantaudit.recipe.oneshot import Pipeline, load_saved, run_oneshot, saved_parameters, with_saved_ranges
from quantaudit.recipe.resolve import Resolution
from quantaudit.simulate.logits import score_checkpoint, score_plans
from quantaudit.simulate.plan import Plan
from quantaudit.simulate.recipes import recipe_plan
from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.smooth import smoothed

TOLERANCE = 0.05
"""Relative difference of the KL above which a prediction does not agree with what was made."""

CALIBRATION_ATTENTION = "eager"
"""What llm-compressor switches to for every calibration pass."""

Scales = dict[str, Tensor]
"""By module path: the scale of its input [1], or of its weight, in the shape it is saved in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is expected of a recipe, taken before the model is changed.

    plan, row: from the card's profile. inputs, weights: scales as llm-compressor's own calibration will see them.
    factors: by module path, what the channels of its input are divided by beforehand, [in_features].
    """

    plan: Plan
    row: RecipeRow
    inputs: Scales
    weights: Scales
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
    """The score that the card's profile promises, and the scales of every input and weight."""
    recipe, groups = resolution.as_recipe(name), discover(loaded.model).groups
    plan = recipe_plan(recipe, loaded.model, groups, profile, corpus.samples)
    advance = stages("predicting", len(samples), "samples")
    (row,) = score_plans(loaded.model, samples, [plan], progress=advance)
    inputs = _input_scales(plan)
    if inputs and profile.provenance.environment.attention != CALIBRATION_ATTENTION:
        replayed = replay(loaded, profile, corpus, stages)
        inputs = _input_scales(recipe_plan(recipe, loaded.model, groups, replayed, corpus.samples))
    with smoothed(loaded.model, plan.smoothed) as factors:
        weights = weight_scales(loaded.model, resolution.schemes)
    return Prediction(plan=plan, row=row, inputs=inputs, weights=weights, factors=factors)


def replay(loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, stages: Stages = silent_stages) -> Profile:
    """The calibration samples measured again under the attention that llm-compressor calibrates with.

    Implementations of attention differ by rounding, and scales with them: by steps of the checkpoint's dtype.
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
    rescaled = _rescaled(base.model, samples, plan, saved)
    advance()
    findings = [
        *conform(_of_smoothed(read_artifact(folder, card.model.modules), expected.factors), card, policy).findings,
        *without_mask(calibration.without_mask),
    ]
    kl_error = None if not actual.kl or predicted.kl is None else abs(predicted.kl - actual.kl) / actual.kl
    return Verification(
        recipe=plan.name,
        digest=plan.digest or "",
        pipeline=calibration.pipeline,
        calibration_samples=calibration.samples,
        tokens=actual.tokens,
        input_scales=compare_scales(expected.inputs, saved, "input_scale"),
        weight_scales=compare_scales(expected.weights, saved, "weight_scale"),
        predicted=_score(predicted),
        with_saved_scales=rescaled,
        actual=_score(actual),
        kl_error=kl_error,
        findings=findings,
        agrees=_agrees(kl_error, predicted, actual, findings, tolerance),
    )


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


def _agrees(
    kl_error: float | None, predicted: RecipeRow, actual: RecipeRow, findings: Sequence[Finding], tolerance: float
) -> bool:
    if any(finding.severity == "error" for finding in findings):
        return False
    if actual.kl is None:
        return False
    if kl_error is None:
        return predicted.kl == actual.kl
    return kl_error <= tolerance
