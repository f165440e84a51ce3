"""Recipes run for real on a small model: scales, scores, and what is reported where the prediction does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantaudit.card.build import build_card
from quantaudit.card.schema import Verification
from quantaudit.common.resources import resource_dir
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.float32_products import float32_products
from quantaudit.model.loading.load import LoadedModel
from quantaudit.policy import Policy, load_policy
from quantaudit.provenance import Arithmetic
from quantaudit.recipe.parse import read_recipe
from quantaudit.recipe.resolve import resolve
from quantaudit.simulate import evaluation
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.verify.compare import compare, compare_scales, conclude
from quantaudit.verify.oneshot import Pipeline, load_saved, run_oneshot
from quantaudit.verify.predict import predict
from quantaudit.verify.run import make
from tests.builders import load, random_corpus, save_checkpoint, tiny_model
from tests.recipe_cards import recipe_row

RECIPES = resource_dir("recipes")
GPTQ = """quant_stage:
  quant_modifiers:
    GPTQModifier:
      ignore: [lm_head]
      config_groups:
        group_0:
          targets: [Linear]
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel}
          input_activations: {num_bits: 8, type: int, symmetric: true, strategy: tensor, observer: static_minmax}
"""
QUIP = """quant_stage:
  quant_modifiers:
    QuIPModifier: {rotations: [v, u], transform_type: hadamard}
    QuantizationModifier: {targets: [Linear], ignore: [lm_head], scheme: W8A8}
"""
CACHE = """quant_stage:
  quant_modifiers:
    QuantizationModifier:
      targets: [Linear]
      ignore: [lm_head]
      scheme: W8A8
      kv_cache_scheme: {num_bits: 8, type: float, strategy: tensor, dynamic: false, symmetric: true}
"""


SMOOTHED_DYNAMIC = """\
quant_stage:
  quant_modifiers:
    SmoothQuantModifier: {smoothing_strength: 0.8}
    QuantizationModifier: {targets: [Linear], ignore: [lm_head], scheme: INT8}
"""


@pytest.fixture(scope="module", autouse=True, params=["native", "float32"])
def arithmetic(request: pytest.FixtureRequest) -> Iterator[Arithmetic]:
    """Everything here holds under either."""
    with float32_products(torch.bfloat16) if request.param == "float32" else nullcontext():
        yield request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model("llama", hidden_size=128, intermediate_size=256, head_dim=32, num_hidden_layers=2)
    return save_checkpoint(tmp_path_factory.mktemp("verify") / "llama", model)


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 29, 24, 20, 17, 13, 9])


@pytest.fixture(scope="module")
def profile(folder: Path, corpus: TokenizedCorpus, arithmetic: Arithmetic) -> Profile:
    """Measured under eager attention, so that random weights do not amplify another implementation's rounding."""
    eager = load(folder)
    eager.model.set_attn_implementation("eager")
    return measure(eager, corpus)


def verify(
    folder: Path,
    corpus: TokenizedCorpus,
    profile: Profile,
    recipe: str,
    saved: Path,
    *,
    spoil: bool = False,
    pipeline: Pipeline = "basic",
    policy: Policy | None = None,
) -> Verification:
    """recipe: the name of one that is shipped, or its text."""
    path = RECIPES / f"{recipe}.yaml"
    if "\n" in recipe:
        path = saved.with_suffix(".yaml")
        path.write_text(recipe, encoding="utf-8")
    loaded: LoadedModel = load(folder)
    opened = OpenedRecipe(
        path=path,
        resolution=resolve(read_recipe(path), loaded.model),
        loaded=loaded,
        profile=profile,
        corpus=corpus,
        samples=evaluation.select(corpus.samples, 64),
    )
    expected = predict(opened)
    checkpoint = make(loaded, path, corpus.samples, saved, pipeline=pipeline)
    if spoil:
        (file,) = saved.glob("*.safetensors")
        tensors = load_file(file)
        tensors["model.layers.1.mlp.down_proj.input_scale"] = torch.full((1,), float("nan"), dtype=torch.bfloat16)
        save_file(tensors, file, metadata={"format": "pt"})
    return compare(
        load(folder),
        checkpoint,
        expected,
        build_card(profile, [], None, load_policy("default"), timings={}),
        policy or load_policy("default"),
    )


@pytest.mark.parametrize("recipe", ["w8a8_static", "w8a8_static_moving_average", "fp8_static", "w8a8_smoothquant"])
def test_static_scales_are_the_predicted_ones(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, tmp_path: Path, recipe: str
) -> None:
    result = verify(folder, corpus, profile, recipe, tmp_path / "saved")
    assert result.agrees, result.model_dump_json(indent=1)
    assert (result.outcome, result.unpredicted) == ("pass", [])
    assert result.input_scales.compared == result.weight_scales.compared == 14
    assert result.input_scales.worst is not None
    assert result.input_scales.worst <= 1e-5
    assert result.weight_scales.worst == 0.0
    assert result.with_saved_scales is not None
    assert result.with_saved_scales.kl == pytest.approx(result.actual.kl, abs=1e-6)
    assert result.calibration_samples == sum(sample.split == "calibration" for sample in corpus.samples)


def test_scales_are_predicted_for_the_arithmetic_that_calibrates_whichever_the_profile_had(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, arithmetic: Arithmetic, tmp_path: Path
) -> None:
    assert profile.provenance.environment.arithmetic == arithmetic
    with float32_products(torch.bfloat16):
        result = verify(folder, corpus, profile, "w8a8_static", tmp_path / "saved")
    assert result.input_scales.worst == 0.0
    assert result.weight_scales.worst == 0.0


@pytest.mark.parametrize("recipe", ["w8a8_static", "w8a8_smoothquant", SMOOTHED_DYNAMIC])
def test_scales_are_predicted_for_the_attention_that_calibrates_whichever_the_profile_had(
    folder: Path, corpus: TokenizedCorpus, tmp_path: Path, recipe: str
) -> None:
    other = measure(load(folder), corpus)
    assert other.provenance.environment.attention == "sdpa"
    result = verify(folder, corpus, other, recipe, tmp_path / "saved")
    assert (result.input_scales.worst or 0.0) <= 1e-5
    assert result.weight_scales.worst == 0.0
    assert result.weight_scales.compared == 14


def test_dynamic_recipes_have_no_input_scales_to_compare(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, tmp_path: Path
) -> None:
    result = verify(folder, corpus, profile, "w8a8_dynamic", tmp_path / "saved")
    assert result.agrees, result.model_dump_json(indent=1)
    assert (result.input_scales.compared, result.input_scales.worst) == (0, None)
    assert result.kl_error == pytest.approx(0.0, abs=1e-6)


def test_a_broken_saved_scale_is_found_and_nothing_agrees(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, tmp_path: Path
) -> None:
    result = verify(folder, corpus, profile, "w8a8_static", tmp_path / "saved", spoil=True)
    assert result.agrees is False
    assert result.outcome == "fail"
    assert "QA601" in result.reason
    assert result.input_scales.worst is None
    assert result.input_scales.module == "model.layers.1.mlp.down_proj"
    assert any(f.severity == "error" and f.module == "model.layers.1.mlp.down_proj" for f in result.findings)


@pytest.fixture(scope="module")
def lax() -> Policy:
    """Within it, whatever random weights do."""
    policy = load_policy("default")
    kl, top1 = policy.kl.model_copy(update={"care": 5.0}), policy.top1.model_copy(update={"care": 0.0})
    few = policy.evaluation.model_copy(update={"tokens": 2, "samples": 2, "level": 0.5})
    return policy.model_copy(update={"name": "lax", "kl": kl, "top1": top1, "evaluation": few})


@pytest.mark.parametrize("pipeline", ["basic", "sequential"])
def test_gptq_keeps_the_predicted_scales_and_there_is_no_prediction_to_agree_with(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, lax: Policy, tmp_path: Path, pipeline: Pipeline
) -> None:
    result = verify(folder, corpus, profile, GPTQ, tmp_path / "gptq", pipeline=pipeline, policy=lax)
    assert (result.agrees, result.kl_error, result.outcome) == (None, None, "inconclusive")
    assert result.unpredicted == ["GPTQ chooses rounded weights by calibration; only rounding to nearest is simulated"]
    assert "in no prediction" in result.reason
    assert result.actual.kl is not None
    assert result.actual.kl != result.predicted.kl
    assert result.weight_scales.compared == result.input_scales.compared == 14
    assert result.weight_scales.worst == 0.0
    assert result.input_scales.worst is not None
    # In the sequential pipeline later inputs are of weights that GPTQ has rounded already.
    assert (result.input_scales.worst <= 1e-5) == (pipeline == "basic")


def test_what_is_not_predicted_fails_beyond_the_policy_and_where_it_is_broken(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, lax: Policy, tmp_path: Path
) -> None:
    strict = lax.model_copy(update={"kl": lax.kl.model_copy(update={"care": 1e-9, "ready": 0.0})})
    beyond = verify(folder, corpus, profile, GPTQ, tmp_path / "beyond", policy=strict)
    assert (beyond.agrees, beyond.outcome) == (None, "fail")
    assert "NOT READY" in beyond.reason
    assert "KL above 1e-09" in beyond.reason
    broken = verify(folder, corpus, profile, GPTQ, tmp_path / "broken", policy=lax, spoil=True)
    assert (broken.agrees, broken.outcome) == (None, "fail")
    assert "model.layers.1.mlp.down_proj" in broken.reason


def test_scales_of_rotated_weights_are_compared_with_nothing_and_rotations_survive_loading(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, lax: Policy, tmp_path: Path
) -> None:
    """transformers loads a checkpoint without the rotations that it applies at run time: its logits would be noise."""
    path = tmp_path / "quip.yaml"
    path.write_text(QUIP, encoding="utf-8")
    result = verify(folder, corpus, profile, QUIP, tmp_path / "quip", policy=lax)
    assert (result.agrees, result.outcome) == (None, "inconclusive")
    assert result.input_scales.compared == result.weight_scales.compared == 0
    assert result.with_saved_scales is None
    quantized = load(folder)
    run_oneshot(quantized, path, [s for s in corpus.samples if s.split == "calibration"], tmp_path / "again")
    sample = torch.from_numpy(corpus.samples[0].ids)[None]
    with torch.no_grad():
        again = load_saved(tmp_path / "again", torch.device("cpu"))
        assert torch.equal(again(sample).logits, quantized.model.eval()(sample).logits)


def test_a_quantized_cache_is_not_predicted_though_all_else_is(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, lax: Policy, tmp_path: Path
) -> None:
    result = verify(folder, corpus, profile, CACHE, tmp_path / "cache", policy=lax)
    assert (result.agrees, result.outcome) == (None, "inconclusive")
    assert result.unpredicted == ["the key-value cache is quantized, which is not simulated"]
    assert (result.weight_scales.compared, result.weight_scales.worst) == (14, 0.0)


@pytest.mark.parametrize("left_out", [[], ["GPTQ"]])
@pytest.mark.parametrize("actual", [None, 0.01, 0.02, 0.5])
def test_what_follows_from_a_kl(actual: float | None, left_out: list[str]) -> None:
    """A predicted harm is no failure, an unpredicted one is; what is not finite always is."""
    predicted = recipe_row("r", 0.5, unsimulated=left_out)
    row = recipe_row("r", actual, unsimulated=left_out)
    error = None if left_out or not actual else abs(0.5 - actual) / actual
    agrees, outcome, reason = conclude(predicted, row, error, [], load_policy("default"), 0.05)
    if left_out:
        assert agrees is None
        assert outcome == {None: "fail", 0.01: "inconclusive", 0.02: "inconclusive", 0.5: "fail"}[actual]
    else:
        assert (agrees, outcome) == ((True, "pass") if actual == 0.5 else (False, "fail"))
    assert ("NaN or infinite" in reason) == (actual is None)
    assert ("is NOT READY under the policy `default`" in reason) == (actual == 0.5)
    assert ("is READY under the policy `default`" in reason) == (actual in (0.01, 0.02))


def test_the_worst_difference_is_relative_and_names_its_module() -> None:
    predicted = {"a": torch.tensor([2.0]), "b": torch.tensor([[1.0], [4.0]])}
    saved = {"a.input_scale": torch.tensor([2.0]), "b.input_scale": torch.tensor([[1.0], [5.0]])}
    comparison = compare_scales(predicted, saved, "input_scale")
    assert (comparison.compared, comparison.worst, comparison.module) == (2, 0.25, "b")
    del saved["a.input_scale"]
    missing = compare_scales(predicted, saved, "input_scale")
    assert (missing.worst, missing.module) == (None, "a")
