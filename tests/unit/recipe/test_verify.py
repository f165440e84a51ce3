"""Recipes run for real on a small model: scales, scores, and what is told when the result is not what was predicted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantaudit.card.build import build_card
from quantaudit.card.schema import Verification
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure import measure
from quantaudit.model.load import LoadedModel
from quantaudit.policy import load_policy
from quantaudit.profile import Profile
from quantaudit.recipe.resolve import resolve
from quantaudit.recipe.source import read_recipe
from quantaudit.recipe.verify import compare, compare_scales, make, predict
from quantaudit.resources import resource_dir
from quantaudit.simulate import evaluation
from tests.builders import load, random_corpus, save_checkpoint, tiny_model

RECIPES = resource_dir("recipes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model("llama", hidden_size=128, intermediate_size=256, head_dim=32, num_hidden_layers=2)
    return save_checkpoint(tmp_path_factory.mktemp("verify") / "llama", model)


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 29, 24, 20, 17, 13, 9])


@pytest.fixture(scope="module")
def profile(folder: Path, corpus: TokenizedCorpus) -> Profile:
    """Measured under eager attention, so that random weights do not amplify another implementation's rounding."""
    eager = load(folder)
    eager.model.set_attn_implementation("eager")
    return measure(eager, corpus)


def verify(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, recipe: str, saved: Path, *, spoil: bool = False
) -> Verification:
    path = RECIPES / f"{recipe}.yaml"
    loaded: LoadedModel = load(folder)
    samples = evaluation.select(corpus.samples, 64)
    expected = predict(loaded, profile, corpus, samples, resolve(read_recipe(path), loaded.model), recipe)
    calibration = make(loaded, path, corpus.samples, saved, pipeline="basic")
    if spoil:
        (file,) = saved.glob("*.safetensors")
        tensors = load_file(file)
        tensors["model.layers.1.mlp.down_proj.input_scale"] = torch.full((1,), float("nan"), dtype=torch.bfloat16)
        save_file(tensors, file, metadata={"format": "pt"})
    return compare(
        load(folder),
        saved,
        samples,
        expected,
        calibration,
        build_card(profile, [], None, load_policy("default"), timings={}),
        load_policy("default"),
    )


@pytest.mark.parametrize("recipe", ["w8a8_static", "w8a8_static_moving_average", "fp8_static", "w8a8_smoothquant"])
def test_static_scales_are_the_predicted_ones(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, tmp_path: Path, recipe: str
) -> None:
    found = verify(folder, corpus, profile, recipe, tmp_path / "saved")
    assert found.agrees, found.model_dump_json(indent=1)
    assert found.input_scales.compared == found.weight_scales.compared == 14
    assert found.input_scales.worst is not None
    assert found.input_scales.worst <= 1e-5
    assert found.weight_scales.worst == 0.0
    assert found.with_saved_scales is not None
    assert found.with_saved_scales.kl == pytest.approx(found.actual.kl, abs=1e-6)
    assert found.calibration_samples == sum(sample.split == "calibration" for sample in corpus.samples)


def test_scales_are_predicted_for_the_attention_that_calibrates_whichever_the_profile_had(
    folder: Path, corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    other = measure(load(folder), corpus)
    assert other.provenance.environment.attention == "sdpa"
    found = verify(folder, corpus, other, "w8a8_static", tmp_path / "saved")
    assert found.input_scales.worst is not None
    assert found.input_scales.worst <= 1e-5


def test_dynamic_recipes_have_no_input_scales_to_compare(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, tmp_path: Path
) -> None:
    found = verify(folder, corpus, profile, "w8a8_dynamic", tmp_path / "saved")
    assert found.agrees, found.model_dump_json(indent=1)
    assert (found.input_scales.compared, found.input_scales.worst) == (0, None)
    assert found.kl_error == pytest.approx(0.0, abs=1e-6)


def test_a_broken_saved_scale_is_found_and_nothing_agrees(
    folder: Path, corpus: TokenizedCorpus, profile: Profile, tmp_path: Path
) -> None:
    found = verify(folder, corpus, profile, "w8a8_static", tmp_path / "saved", spoil=True)
    assert not found.agrees
    assert found.input_scales.worst is None
    assert found.input_scales.module == "model.layers.1.mlp.down_proj"
    assert any(f.severity == "error" and f.module == "model.layers.1.mlp.down_proj" for f in found.findings)


def test_the_worst_difference_is_relative_and_names_its_module() -> None:
    predicted = {"a": torch.tensor([2.0]), "b": torch.tensor([[1.0], [4.0]])}
    saved = {"a.input_scale": torch.tensor([2.0]), "b.input_scale": torch.tensor([[1.0], [5.0]])}
    found = compare_scales(predicted, saved, "input_scale")
    assert (found.compared, found.worst, found.module) == (2, 0.25, "b")
    del saved["a.input_scale"]
    missing = compare_scales(predicted, saved, "input_scale")
    assert (missing.worst, missing.module) == (None, "a")
