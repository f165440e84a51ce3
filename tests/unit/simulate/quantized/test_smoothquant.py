"""SmoothQuant on a model, within a context: its factors by another formula, what it leaves behind, and what it does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import CorpusError
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.experts import linearize
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.recipe.parse import read_recipe
from quantaudit.recipe.resolve import resolve
from quantaudit.recipe.resolved import SmoothQuant
from quantaudit.simulate.logits.score_plans import score_checkpoint, score_plans
from quantaudit.simulate.quantized.recipe_plan import recipe_plan
from quantaudit.simulate.quantized.smoothquant import (
    CalibratedSmoothQuant,
    calibrate,
    calibration_tokens,
    observed_ranges,
    smoothed,
)
from quantaudit.verify.oneshot import load_saved, run_oneshot, saved_parameters
from tests.builders import (
    differences,
    hooks,
    load,
    loaded_from,
    random_corpus,
    save_checkpoint,
    tiny_model,
    weight_bytes,
)
from tests.families import family_model

LAYER = "model.layers.1"
QKV = tuple(f"{LAYER}.self_attn.{name}_proj" for name in "qkv")
NORM = f"{LAYER}.input_layernorm"
INPUT = "layers.1.self_attn.qkv_proj.input"


def smooth(strength: float = 0.5, algorithm: str = "smoothquant") -> SmoothQuant:
    return SmoothQuant(algorithm=algorithm, strength=strength, mappings=((NORM, QKV),))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """In float32, where smoothing leaves nearly what was there; embedding and head are one."""
    model = tiny_model("llama", dtype=torch.float32, tie_word_embeddings=True)
    return load(save_checkpoint(tmp_path_factory.mktemp("m") / "tied", model))


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 29, 24, 20, 17, 13, 9])


@pytest.fixture(scope="module")
def profile(loaded: LoadedModel, corpus: TokenizedCorpus) -> Profile:
    with eager_attention(loaded.model):
        return measure(loaded, corpus)


@pytest.fixture(scope="module")
def evaluation(corpus: TokenizedCorpus) -> list[TokenizedSample]:
    return [sample for sample in corpus.samples if sample.split == "evaluation"]


def logits(model: Any, sample: TokenizedSample) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(sample.ids)[None]).logits


def spans(model: Any, corpus: TokenizedCorpus, module: str) -> NDArray[np.float64]:
    """Greatest less least value of each channel of a module's output over the calibration samples."""
    outputs: list[NDArray[np.float64]] = []
    hook = model.get_submodule(module).register_forward_hook(
        lambda _module, _args, output: outputs.append(output[0].double().numpy())
    )
    for sample in corpus.samples:
        if sample.split == "calibration":
            logits(model, sample)
    hook.remove()
    rows = np.concatenate(outputs)
    return rows.max(0) - rows.min(0)


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8, 1.0])
def test_factors_are_those_of_the_paper_with_the_toolkits_ranges(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, strength: float
) -> None:
    """s = range(X)^α / (2 max|W|)^(1 − α) (arXiv 2211.10438; llm-compressor doubles max|W| to be a range as well)."""
    model = loaded.model
    steps, _ = calibrate(model, profile, corpus.samples, [smooth(strength)], [])
    weights = {path: model.get_submodule(path).weight.detach().double().numpy() for path in QKV}
    amax = np.max([np.abs(w).max(0) for w in weights.values()], axis=0)
    expected = spans(model, corpus, NORM) ** strength / (2 * amax) ** (1 - strength)
    norm = model.get_submodule(NORM).weight.detach().double().numpy()
    with smoothed(model, steps) as factors:
        assert set(factors) == set(QKV)
        for path in QKV:
            np.testing.assert_allclose(factors[path].numpy(), expected, rtol=1e-5)
            np.testing.assert_allclose(model.get_submodule(path).weight, weights[path] * expected, rtol=1e-5)
        np.testing.assert_allclose(model.get_submodule(NORM).weight, norm / expected, rtol=1e-5)


def test_logarithmic_equalization_asks_the_activations_alone(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus
) -> None:
    steps, _ = calibrate(loaded.model, profile, corpus.samples, [smooth(0.1, "log_equalization")], [])
    span = spans(loaded.model, corpus, NORM)
    with smoothed(loaded.model, steps) as factors:
        np.testing.assert_allclose(factors[QKV[0]].numpy(), span / np.log2(2 + span), rtol=1e-5)


def test_the_model_is_the_same_function_inside_and_the_same_bits_outside(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, evaluation: list[TokenizedSample]
) -> None:
    model: Any = loaded.model
    before, parameters, count = weight_bytes(model), dict(model.named_parameters()), hooks(model)
    clean = logits(model, evaluation[0])
    steps, _ = calibrate(model, profile, corpus.samples, [smooth()], [INPUT])
    with smoothed(model, steps):
        assert weight_bytes(model) != before
        torch.testing.assert_close(logits(model, evaluation[0]), clean, rtol=1e-4, atol=1e-4)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert weight_bytes(model) == before
    with pytest.raises(KeyboardInterrupt), smoothed(model, steps):
        raise KeyboardInterrupt
    assert weight_bytes(model) == before
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert hooks(model) == count
    assert torch.equal(logits(model, evaluation[0]), clean)


def test_a_parameter_that_is_shared_is_shared_inside_too(corpus: TokenizedCorpus) -> None:
    """The head's weight is the embedding's: multiplied in place, as `oneshot` would, both have changed."""
    model: Any = tiny_model("llama", dtype=torch.float32, tie_word_embeddings=True)
    before = weight_bytes(model)
    step = CalibratedSmoothQuant(
        spec=SmoothQuant(algorithm="smoothquant", strength=1.0, mappings=(("model.norm", ("lm_head",)),)),
        ranges={"model.norm": (torch.zeros(64), torch.full((64,), 4.0))},
    )
    embedding = model.model.embed_tokens.weight.detach().clone()
    with smoothed(model, [step]) as factors:
        assert model.model.embed_tokens.weight is model.lm_head.weight
        assert torch.equal(factors["lm_head"], torch.full((64,), 4.0))
        assert torch.equal(model.model.embed_tokens.weight, embedding * 4)
    assert weight_bytes(model) == before
    assert model.model.embed_tokens.weight is model.lm_head.weight


def test_statistics_are_those_of_the_smoothed_model_for_the_sites_that_were_asked_for(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus
) -> None:
    steps, smoothed_profile = calibrate(loaded.model, profile, corpus.samples, [smooth(0.8)], [INPUT])
    with smoothed(loaded.model, steps), eager_attention(loaded.model):
        expected = measure(loaded, corpus)
    key = (INPUT, "calibration")
    assert not differences(smoothed_profile.statistics[key], expected.statistics[key])  # type: ignore[index]
    assert differences(smoothed_profile.statistics[key], profile.statistics[key])  # type: ignore[index]
    others = {name for name in profile.statistics if name != key}
    assert all(smoothed_profile.statistics[name] is profile.statistics[name] for name in others)


def test_known_ranges_save_a_pass_and_change_nothing(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus
) -> None:
    chain, passes = [smooth(0.8), smooth(0.5)], calibration_tokens(corpus.samples)
    ranges = observed_ranges(loaded.model, profile, corpus.samples, frozenset({NORM, "model.norm"}))
    ran: dict[bool, int] = {}
    calibrated = {}
    for known in (False, True):
        advances: list[int] = []
        calibrated[known] = calibrate(
            loaded.model,
            profile,
            corpus.samples,
            chain,
            [INPUT],
            ranges=ranges if known else None,
            progress=lambda amount=1, advances=advances: advances.append(amount),
        )
        ran[known] = sum(advances)
    assert ran == {False: 3 * passes, True: 2 * passes}
    for one, other in zip(calibrated[False][0], calibrated[True][0], strict=True):
        assert one.ranges.keys() == other.ranges.keys() == {NORM}
        assert all(torch.equal(*ends) for ends in zip(one.ranges[NORM], other.ranges[NORM], strict=True))
    key = (INPUT, "calibration")
    assert not differences(calibrated[False][1].statistics[key], calibrated[True][1].statistics[key])  # type: ignore[index]


def test_steps_follow_one_another(loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus) -> None:
    """Each sees what those before it leave; their factors multiply."""
    first, _ = calibrate(loaded.model, profile, corpus.samples, [smooth(1.0)], [])
    both, _ = calibrate(loaded.model, profile, corpus.samples, [smooth(1.0), smooth(0.0)], [])
    low, high = both[1].ranges[NORM]
    np.testing.assert_allclose(high - low, np.ones(64), rtol=1e-5)  # what full strength leaves
    with smoothed(loaded.model, first) as factors:
        weights = [loaded.model.get_submodule(path).weight.detach().abs().amax(0) for path in QKV]
        expected = factors[QKV[0]] / (2 * torch.stack(weights).amax(0))
    with smoothed(loaded.model, both) as factors:
        np.testing.assert_allclose(factors[QKV[0]], expected, rtol=1e-5)


def test_without_calibration_samples_it_is_refused(
    loaded: LoadedModel, profile: Profile, evaluation: list[TokenizedSample]
) -> None:
    assert calibrate(loaded.model, profile, [], [], [INPUT]) == ((), profile)
    with pytest.raises(CorpusError, match="no calibration sample"):
        calibrate(loaded.model, profile, evaluation, [smooth()], [])


STATIC = """
      ignore: [lm_head, "re:.*mlp.gate$"]
      config_groups:
        linears:
          targets: [Linear]
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel}
          input_activations: {num_bits: 8, type: int, symmetric: true, strategy: tensor, observer: OBSERVER}
"""
PLAIN = "SmoothQuantModifier: {smoothing_strength: 0.8}"
TWO = """SmoothQuantModifier:
      smoothing_strength: 0.5
      mappings: [[["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"]]
  b_modifiers:
    SmoothQuantModifier:
      smoothing_strength: 0.9
      mappings:
        - [["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"]
        - [["re:.*down_proj"], "re:.*up_proj"]
"""
EXPERTS = """SmoothQuantModifier:
      mappings:
        - [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"]
        - [["re:.*mlp.gate$", "re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"]
"""


@pytest.mark.parametrize(
    ("family", "dtype", "modifiers", "observer"),
    [
        ("llama", torch.bfloat16, PLAIN, "static_minmax"),
        ("llama", torch.float32, PLAIN, "minmax"),
        ("llama", torch.bfloat16, "SmoothQuantModifier: {algorithm: log_equalization}", "memoryless_minmax"),
        ("llama", torch.bfloat16, TWO, "static_minmax"),
        ("mistral", torch.bfloat16, PLAIN, "static_minmax"),
        ("phi3", torch.bfloat16, PLAIN, "minmax"),
        ("gemma3", torch.float32, PLAIN, "static_minmax"),
    ],
)
def test_the_simulation_is_what_oneshot_saves(
    family: str, dtype: torch.dtype, modifiers: str, observer: str, corpus: TokenizedCorpus, tmp_path: Path,
    evaluation: list[TokenizedSample],
) -> None:  # fmt: skip
    """Every input scale, and the KL of the checkpoint as it is saved and loaded again."""
    recipe = tmp_path / "recipe.yaml"
    quantization = f"QuantizationModifier:{STATIC.replace('OBSERVER', observer)}"
    recipe.write_text(f"s_stage:\n  a_modifiers:\n    {modifiers}\n  q_modifiers:\n    {quantization}")
    loaded = load(save_checkpoint(tmp_path / "model", tiny_model(family, dtype=dtype)))
    with eager_attention(loaded.model):
        profile = measure(loaded, corpus)
    resolution = resolve(read_recipe(recipe), loaded.model)
    assert resolution.unsimulated == ()
    groups = discover(loaded.model).groups
    plan = recipe_plan(resolution.as_recipe("r"), loaded.model, groups, profile, corpus.samples)
    (predicted,) = score_plans(loaded.model, evaluation, [plan])
    changed = load(tmp_path / "model")
    calibration = [sample for sample in corpus.samples if sample.split == "calibration"]
    run_oneshot(changed, recipe, calibration, tmp_path / "saved", pipeline="basic")
    real = score_checkpoint(loaded.model, load_saved(tmp_path / "saved", loaded.device), evaluation, plan)
    saved = saved_parameters(tmp_path / "saved")
    compared = 0
    for path, qparams in plan.qparams.items():
        assert qparams is not None
        assert float(saved[f"{path}.input_scale"]) == pytest.approx(float(qparams.scale), rel=1e-5), path
        compared += 1
    assert compared == len(resolution.schemes) >= 12
    assert predicted.kl == pytest.approx(real.kl, rel=1e-4)
    assert (predicted.approximate, predicted.unsimulated) == ([], [])


def test_the_toolkits_own_choice_of_pipeline_comes_within_five_percent(
    loaded: LoadedModel, corpus: TokenizedCorpus, profile: Profile, evaluation: list[TokenizedSample], tmp_path: Path
) -> None:
    """It smooths layer by layer, each behind those smoothed already: the same but for rounding, here of float32."""
    recipe = tmp_path / "recipe.yaml"
    quantization = f"QuantizationModifier:{STATIC.replace('OBSERVER', 'static_minmax')}"
    recipe.write_text(f"s_stage:\n  q_modifiers:\n    {PLAIN}\n    {quantization}")
    resolution = resolve(read_recipe(recipe), loaded.model)
    plan = recipe_plan(resolution.as_recipe("r"), loaded.model, discover(loaded.model).groups, profile, corpus.samples)
    (predicted,) = score_plans(loaded.model, evaluation, [plan])
    changed = loaded_from(tiny_model("llama", dtype=torch.float32, tie_word_embeddings=True), loaded)
    calibration = [sample for sample in corpus.samples if sample.split == "calibration"]
    run_oneshot(changed, recipe, calibration, tmp_path / "saved", pipeline="independent")
    real = score_checkpoint(loaded.model, load_saved(tmp_path / "saved", loaded.device), evaluation, plan)
    saved = saved_parameters(tmp_path / "saved")
    worst = max(abs(float(saved[f"{path}.input_scale"] / q.scale) - 1) for path, q in plan.qparams.items() if q)
    assert worst < 1e-5
    assert predicted.kl == pytest.approx(real.kl, rel=0.05)


def test_experts_are_smoothed_together_with_their_router_and_restored(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    """Linearized experts keep their parameters in a cache of compressed_tensors."""
    model = family_model("qwen3-moe")
    linearize(model)
    loaded, corpus = loaded_from(model, tiny_loaded), random_corpus([60, 50, 40, 40, 30, 30])
    profile = measure(loaded, corpus)
    recipe = tmp_path / "recipe.yaml"
    quantization = f"QuantizationModifier:{STATIC.replace('OBSERVER', 'static_minmax')}"
    recipe.write_text(f"s_stage:\n  q_modifiers:\n    {EXPERTS}    {quantization}")
    resolution = resolve(read_recipe(recipe), model)
    assert resolution.unsimulated == ()
    before = _stored(model)
    plan = recipe_plan(resolution.as_recipe("r"), model, discover(model).groups, profile, corpus.samples)
    with smoothed(model, plan.smoothed) as factors:
        inside = _stored(model)
        for path in ("model.layers.0.mlp.experts.1.up_proj", "model.layers.0.mlp.experts.0.gate_proj"):
            name = f"{path}.weight"
            expected = (before[name].float() * factors[path].float()).bfloat16()
            assert torch.equal(inside[name], expected)
            assert not torch.equal(inside[name], before[name])
    after = _stored(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    rows = score_plans(model, corpus.samples[:2], [plan])
    assert rows[0].kl is not None
    assert rows[0].kl > 0


def _stored(model: Any) -> Mapping[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
