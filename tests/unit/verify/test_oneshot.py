"""Presets of compressed-tensors, run for real on a tiny model: the saved checkpoint is the simulated one to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import ModelError, RecipeError
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.quant.schemes import Scheme, find_scheme
from quantaudit.simulate.experiment import Experiment, InputRanges
from quantaudit.simulate.quantized.modules import quantized_modules
from quantaudit.simulate.quantized.plan import Plan, PlanWeights
from quantaudit.verify.oneshot import load_saved, run_oneshot, saved_inputs, saved_parameters
from tests.builders import load, random_corpus, save_checkpoint, tiny_model
from tests.families import family_model

CPU = torch.device("cpu")
PRESETS = {
    "W8A8": "W8A8",
    "INT8, static": "int8_static_per_tensor",
    "INT8, asymmetric": "int8_asymmetric_static_per_tensor",
    "INT8, moving average": "int8_static_per_tensor:minmax",
    "W8A16": "W8A16",
    "W4A16": "W4A16",
    "W4A16_ASYM": "W4A16_ASYM",
    "W4A8": "W4A8",
    "FP8": "FP8",
    "FP8_DYNAMIC": "FP8_DYNAMIC",
    "FP8_BLOCK": "FP8_BLOCK",
    "NVFP4": "NVFP4",
    "NVFP4A16": "NVFP4A16",
    "MXFP4": "MXFP4",
    "MXFP8": "MXFP8",
}
GROUPS = """
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      ignore: [lm_head]
      config_groups:
        all:
          targets: [Linear]
          weights: {{num_bits: 8, type: int, symmetric: true, strategy: channel}}
          input_activations: {{num_bits: 8, type: int, symmetric: {symmetric}, strategy: tensor{observer}}}
"""
PRESET = """
quant_stage:
  quant_modifiers:
    QuantizationModifier: {{targets: [Linear], ignore: [lm_head], scheme: {preset}}}
"""
YAML = {
    "INT8, static": GROUPS.format(symmetric="true", observer=", observer: static_minmax"),
    "INT8, asymmetric": GROUPS.format(symmetric="false", observer=", observer: static_minmax"),
    "INT8, moving average": GROUPS.format(symmetric="true", observer=""),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for groups of 128."""
    model = tiny_model("llama", hidden_size=128, intermediate_size=256, head_dim=32, num_hidden_layers=2)
    return save_checkpoint(tmp_path_factory.mktemp("wide") / "llama", model)


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 29, 24, 20, 17, 13, 9])


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(folder)


@pytest.fixture(scope="module")
def profile(folder: Path, corpus: TokenizedCorpus) -> Profile:
    """Measured under eager attention, which llm-compressor calibrates with."""
    eager = load(folder)
    with eager_attention(eager.model):
        return measure(eager, corpus)


def calibration(corpus: TokenizedCorpus) -> list[TokenizedSample]:
    return [sample for sample in corpus.samples if sample.split == "calibration"]


def plan(loaded: LoadedModel, profile: Profile, scheme: Scheme) -> Plan:
    architecture = discover(loaded.model)
    ranges = InputRanges.measured(profile, [scheme], architecture.groups)
    experiment = Experiment(model=loaded.model, architecture=architecture, samples=[], schemes=[scheme], ranges=ranges)
    schemes = {group.name: scheme for group in architecture.groups if group.layer is not None}
    return Plan.of_groups(experiment, name="p", title="p", schemes=schemes)


@pytest.mark.parametrize("case", PRESETS)
def test_a_saved_and_reloaded_checkpoint_is_the_simulated_one(
    folder: Path, loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, tmp_path: Path, case: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(YAML.get(case) or PRESET.format(preset=case))
    run_oneshot(load(folder), recipe, calibration(corpus), tmp_path / "saved", pipeline="basic")
    saved = load_saved(tmp_path / "saved", CPU)

    simulated = plan(loaded, profile, find_scheme(PRESETS[case]))
    ids = torch.from_numpy(corpus.samples[0].ids)[None]
    with torch.no_grad():
        expected = saved(input_ids=ids, use_cache=False).logits
        clean = loaded.model(input_ids=ids, use_cache=False).logits
        with quantized_modules(loaded.model, PlanWeights().of(loaded.model, simulated), simulated.inputs(CPU)):
            logits = loaded.model(input_ids=ids, use_cache=False).logits
    inputs = saved_inputs(saved_parameters(tmp_path / "saved"))
    for module, qparams in simulated.qparams.items():
        if qparams is not None and qparams.global_scale is not None:
            assert torch.equal(inputs[module]["global_scale"], qparams.global_scale)
        elif qparams is not None:
            assert torch.equal(inputs[module]["scale"], qparams.scale)
            zero_point = inputs[module].get("zero_point", torch.zeros(1))
            assert torch.equal(zero_point.float(), qparams.zero_point.float())
    assert not torch.equal(expected, clean)
    assert torch.equal(logits, expected)


def test_saved_parameters_are_those_of_every_quantized_linear(
    folder: Path, loaded: LoadedModel, corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(PRESET.format(preset="FP8"))
    run_oneshot(load(folder), recipe, calibration(corpus), tmp_path / "saved", pipeline="basic")
    parameters = saved_parameters(tmp_path / "saved")
    members = [m for group in discover(loaded.model).groups if group.layer is not None for m in group.members]
    assert set(parameters) == {f"{m}.{name}_scale" for m in members for name in ("input", "weight")}
    assert set(saved_inputs(parameters)) == set(members)


def test_a_checkpoint_names_its_class_where_the_configuration_did_not(
    tiny_folder: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    """As of a GGUF file."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(PRESET.format(preset="FP8_DYNAMIC"))
    nameless = load(tiny_folder)
    nameless.model.config.architectures = None
    run_oneshot(nameless, recipe, calibration(tiny_corpus), tmp_path / "saved", pipeline="basic")
    assert json.loads((tmp_path / "saved/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_recipe_that_does_not_fit_the_model_is_one_error(
    tiny_folder: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    """Groups of 128 do not divide 64 columns."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(PRESET.format(preset="W4A16"))
    with pytest.raises(RecipeError, match="llm-compressor cannot run it"):
        run_oneshot(load(tiny_folder), recipe, calibration(tiny_corpus), tmp_path / "saved")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \.safetensors files"):
        saved_parameters(tmp_path)


@pytest.mark.parametrize(("preset", "loads"), [("W4A16", True), ("W8A8", False), ("NVFP4", False)])
def test_where_transformers_leaves_experts_without_scales_it_is_named(preset: str, loads: bool, tmp_path: Path) -> None:
    folder = save_checkpoint(
        tmp_path / "m", family_model("qwen3-moe", hidden_size=128, head_dim=32, moe_intermediate_size=128)
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "s_stage: {q_modifiers: {QuantizationModifier: "
        f"{{targets: [Linear], scheme: {preset}, ignore: [lm_head, 're:.*mlp.gate$']}}}}}}"
    )
    run_oneshot(load(folder), recipe, list(random_corpus([30, 20]).samples), tmp_path / "q", pipeline="basic")
    if loads:
        assert load_saved(tmp_path / "q", CPU) is not None
        return
    with pytest.raises(
        ModelError, match=r"^[^\n]*: transformers [\d.]+ cannot load the quantized checkpoint"
    ) as caught:
        load_saved(tmp_path / "q", CPU)
    assert "above report" not in str(caught.value)
    assert "the checkpoint may be sound" in str(caught.value.hint)
