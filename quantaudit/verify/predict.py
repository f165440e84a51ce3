"""What is expected of a recipe before llm-compressor runs it: its score, and the scales that will be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.arithmetic import arithmetic_now
from quantaudit.model.forward.attention import eager_attention
from quantaudit.quant.schemes import global_scaled
from quantaudit.quant.weights import weight_range
from quantaudit.simulate.cost import AGAIN, PREDICTING
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.quantized.recipe_plan import recipe_plan
from quantaudit.simulate.quantized.smoothquant import smoothed
from quantaudit.simulate.records import RecipeRow

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

    samples: those that it is scored on. plan, row: from the card's profile. inputs, weights: scales as llm-compressor's
    own calibration will see them; None where the recipe has them taken of something else than was measured. factors: by
    module path, what the channels of its input are divided by beforehand, [in_features].
    """

    samples: Sequence[TokenizedSample]
    plan: Plan
    row: RecipeRow
    inputs: Scales | None
    weights: Scales | None
    factors: Mapping[str, Tensor]


def predict(opened: OpenedRecipe, stages: Stages = silent_stages) -> Prediction:
    """The score that the card's profile promises, and the scales of every input and weight.

    Of what the plan leaves out (`plan.unsimulated`) there is no promise: the score is of the rest.
    """
    model, profile, samples = opened.loaded.model, opened.profile, opened.samples
    recipe, groups = opened.resolution.as_recipe(opened.name), opened.loaded.architecture.groups
    plan = recipe_plan(recipe, model, groups, profile, opened.corpus.samples, stages=stages)
    advance = stages(PREDICTING, len(samples), "samples")
    (row,) = score_plans(model, samples, [plan], progress=advance)
    if not {change.modifier for change in opened.resolution.unsimulated} <= TRUE_TO_SCALE:
        return Prediction(samples=samples, plan=plan, row=row, inputs=None, weights=None, factors={})
    inputs = _input_scales(plan)
    calibrated = plan
    if calibrates_again(opened):
        as_calibrated = measure_as_calibrated(opened, stages)
        calibrated = recipe_plan(recipe, model, groups, as_calibrated, opened.corpus.samples, stages=stages)
        inputs = _input_scales(calibrated)
    with smoothed(model, calibrated.smoothed) as factors:
        weights = weight_scales(model, opened.resolution.schemes)
    return Prediction(samples=samples, plan=plan, row=row, inputs=inputs, weights=weights, factors=factors)


def calibrates_again(opened: OpenedRecipe) -> bool:
    """Whether what the recipe takes of the calibration samples was measured in another way than llm-compressor runs."""
    environment, arithmetic = opened.profile.provenance.environment, arithmetic_now(opened.loaded.model)
    alike = (environment.attention, environment.arithmetic) == (CALIBRATION_ATTENTION, arithmetic)
    inputs = [scheme.input_activations for scheme in opened.resolution.schemes.values()]
    taken = opened.resolution.smoothed or any(args is not None and args.dynamic is False for args in inputs)
    return bool(taken) and not alike


def measure_as_calibrated(opened: OpenedRecipe, stages: Stages = silent_stages) -> Profile:
    """The calibration samples measured again under the attention and arithmetic that llm-compressor calibrates with.

    Implementations of attention and of products differ by rounding, and scales with them: by steps of the checkpoint's
    dtype.
    """
    calibration = tuple(sample for sample in opened.corpus.samples if sample.split == "calibration")
    advance = stages(AGAIN, sum(len(sample.ids) for sample in calibration), "tokens")
    with eager_attention(opened.loaded.model):
        return measure(
            opened.loaded,
            replace(opened.corpus, samples=calibration),
            seed=opened.profile.provenance.environment.seed,
            experts=opened.profile.experts or "routed",
            progress=advance,
        )


def _input_scales(plan: Plan) -> Scales:
    return {
        path: qparams.scale
        for path, qparams in plan.qparams.items()
        if qparams is not None and qparams.global_scale is None
    }


@torch.no_grad()
def weight_scales(model: nn.Module, schemes: Mapping[str, QuantizationScheme]) -> Scales:
    """The scale that llm-compressor will save for every weight, where no global scale is shared."""
    scales: Scales = {}
    for path, scheme in schemes.items():
        module = model.get_submodule(path)
        if scheme.weights is not None and isinstance(module, nn.Linear) and not global_scaled(scheme.weights):
            scales[path], _ = calculate_qparams(*weight_range(module.weight, scheme.weights), scheme.weights)
    return scales
