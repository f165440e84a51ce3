"""Smoothing on the menu: where it is offered, what it is said to cost, and that the advised recipe does just that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quantaudit.advise.goal import Goal, Offers
from quantaudit.advise.options import STRENGTHS
from quantaudit.advise.run import Advice, advise
from quantaudit.advise.smoothquant import Smoothable, find_smoothable, reached
from quantaudit.advise.written.amended_recipe import amended
from quantaudit.advise.written.write_recipe import smooth_groups, write_recipe
from quantaudit.common.resources import resource_dir
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import RecipeError
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.quant.schemes import INT8_STATIC
from quantaudit.recipe.parse import parse_recipe, read_recipe
from quantaudit.recipe.resolve import Resolution, resolve
from quantaudit.simulate import evaluation
from quantaudit.simulate.logits.score_plans import score_checkpoint
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.quantized.smoothquant import smoothed
from quantaudit.verify.oneshot import load_saved, run_oneshot
from tests.builders import load, opened_recipe, random_corpus, save_checkpoint, tiny_model, weight_bytes
from tests.unit.simulate.reference import price_groups

STATIC = resource_dir("recipes") / "w8a8_static.yaml"
QKV, MLP = "layers.1.self_attn.qkv_proj", "layers.1.mlp.gate_up_proj"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Two channels behind one norm are hundreds of times their neighbours, and q, k and v undo it."""
    model = tiny_model("llama", dtype=torch.float32)
    with torch.no_grad():
        model.get_submodule("model.layers.1.input_layernorm").weight[:2] *= 400
        for name in "qkv":
            model.get_submodule(f"model.layers.1.self_attn.{name}_proj").weight[:, :2] /= 400
    return load(save_checkpoint(tmp_path_factory.mktemp("smoothable") / "llama", model))


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 29, 24, 20, 17, 13, 9])


@pytest.fixture(scope="module")
def profile(loaded: LoadedModel, corpus: TokenizedCorpus) -> Profile:
    with eager_attention(loaded.model):
        return measure(loaded, corpus)


@pytest.fixture(scope="module")
def samples(corpus: TokenizedCorpus) -> Sequence[TokenizedSample]:
    return evaluation.select(corpus.samples, 512)


@pytest.fixture(scope="module")
def resolution(loaded: LoadedModel) -> Resolution:
    return resolve(read_recipe(STATIC), loaded.model)


@pytest.fixture(scope="module")
def offered(loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus) -> Smoothable:
    groups = discover(loaded.model).groups
    smoothable = find_smoothable(opened_recipe(loaded, profile, corpus, Resolution(), ()), groups, STRENGTHS)
    assert smoothable is not None
    return smoothable


GOAL = Goal(max_kl=0.1)


@pytest.fixture(scope="module")
def advice(
    loaded: LoadedModel,
    profile: Profile,
    corpus: TokenizedCorpus,
    resolution: Resolution,
    samples: Sequence[TokenizedSample],
) -> Advice:
    before = weight_bytes(loaded.model)
    result = advise(opened_recipe(loaded, profile, corpus, resolution, samples), GOAL)
    assert weight_bytes(loaded.model) == before
    return result


def test_groups_that_a_norm_alone_feeds_are_offered_smoothing(offered: Smoothable) -> None:
    assert set(offered.mappings) == {
        f"layers.{i}.{name}" for i in range(3) for name in ("self_attn.qkv_proj", "mlp.gate_up_proj")
    }
    norm, members = offered.mappings[QKV]
    assert norm == "model.layers.1.input_layernorm"
    assert members == tuple(f"model.layers.1.self_attn.{name}_proj" for name in "qkv")


def test_a_norm_whose_output_goes_elsewhere_is_not_smoothed(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    """llm-compressor's mappings for Gemma name the norm behind attention, which feeds the residual stream."""
    gemma = load(save_checkpoint(tmp_path / "gemma3", tiny_model("gemma3")))
    groups = discover(gemma.model).groups
    assert "layers.1.mlp.gate_up_proj" in reached(gemma.model, groups)
    opened = opened_recipe(gemma, measure(gemma, corpus), corpus, Resolution(), ())
    smoothable = find_smoothable(opened, groups, (0.5,))
    assert smoothable is not None
    assert set(smoothable.mappings) == {f"layers.{i}.self_attn.qkv_proj" for i in range(3)}


def test_a_smoothed_group_is_priced_as_in_a_model_that_was_smoothed(
    loaded: LoadedModel, offered: Smoothable, samples: Sequence[TokenizedSample]
) -> None:
    """The reference prices the plain scheme on the smoothed model itself."""
    model, architecture = loaded.model, discover(loaded.model)
    groups = [group for group in architecture.groups if group.name in (QKV, MLP)]
    inside = replace(architecture, groups=tuple(groups))
    for strength in STRENGTHS:
        ranges = {INT8_STATIC.name: {group.name: offered.qparams(group, strength, INT8_STATIC) for group in groups}}
        prices = price_groups(
            model, inside, samples, [INT8_STATIC], ranges, factors={INT8_STATIC.name: offered.factors[strength]}
        )
        with smoothed(model, offered.calibrated({QKV: strength, MLP: strength})):
            expected = price_groups(model, inside, samples, [INT8_STATIC], ranges)
        plain = price_groups(model, inside, samples, [INT8_STATIC], ranges)
        for key, price in expected.items():
            assert price
            assert prices[key] == pytest.approx(price, rel=0.02), key
        assert plain[QKV, INT8_STATIC.name] != pytest.approx(expected[QKV, INT8_STATIC.name], rel=0.5)


def test_what_smoothing_mends_is_smoothed_and_keeps_its_format(
    advice: Advice,
    loaded: LoadedModel,
    profile: Profile,
    corpus: TokenizedCorpus,
    resolution: Resolution,
    samples: Sequence[TokenizedSample],
) -> None:
    """The same budget without it costs MACs."""
    changed = {change.group: change for change in advice.info.changes}
    assert changed[QKV].option in {f"smoothed_{strength:g}" for strength in STRENGTHS}
    assert changed[QKV].keeps
    assert advice.info.met
    without = advise(opened_recipe(loaded, profile, corpus, resolution, samples), GOAL, Offers(smoothing=False))
    assert without.smooth == ()
    assert (advice.info.advised.kept or 0.0) > (without.info.advised.kept or 0.0) + 0.05
    (before,) = [point.kl for point in [advice.info.before]]
    assert before == without.info.before.kl


def test_the_file_smooths_exactly_the_intended_modules_and_is_what_oneshot_makes(
    advice: Advice,
    loaded: LoadedModel,
    corpus: TokenizedCorpus,
    samples: Sequence[TokenizedSample],
    tmp_path: Path,
) -> None:
    text = amended(advice, loaded.info, loaded.model)
    resolved = resolve(parse_recipe(text, "advised.yaml"), loaded.model)
    assert resolved.digest == advice.row.digest
    assert resolved.unsimulated == ()
    intended = {
        change.group: float(change.option.removeprefix("smoothed_"))
        for change in advice.info.changes
        if change.option.startswith("smoothed")
    }
    members = {group.name: group.members for group in discover(loaded.model).groups}
    smoothed_by = {path: s.spec.strength for s in resolved.smoothings for path in s.balance_layers}
    assert smoothed_by == {path: strength for name, strength in intended.items() for path in members[name]}
    assert all(not s.unmatched and s.problem is None for s in resolved.smoothings)
    line = next(line for line in text.splitlines() if "model.layers.1.input_layernorm" in line)
    assert "estimated KL" in line
    assert 'pipeline="independent"' in text

    path = tmp_path / "advised.yaml"
    path.write_text(text)
    folder = Path(str(loaded.info.spec))
    calibration = [sample for sample in corpus.samples if sample.split == "calibration"]
    run_oneshot(load(folder), path, calibration, tmp_path / "saved", pipeline="basic")
    plan = Plan(name="saved", title="saved", schemes={}, qparams={}, groups=0)
    real = score_checkpoint(loaded.model, load_saved(tmp_path / "saved", loaded.device), samples, plan)
    assert advice.row.kl == pytest.approx(real.kl, rel=1e-3)
    assert advice.info.advised.kl == advice.row.kl


def test_layers_that_are_smoothed_alike_are_one_mapping(loaded: LoadedModel, offered: Smoothable) -> None:
    """Two steps over layers of either kind in turn, as two patterns and one name, resolve to the same steps."""
    chosen = {f"layers.{i}.{name}": 0.5 for i in (2, 0) for name in ("mlp.gate_up_proj", "self_attn.qkv_proj")}
    smooth = offered.smooth(chosen | {QKV: 0.8})
    groups = discover(loaded.model).groups
    modules = {name for name, _ in loaded.model.named_modules()}
    steps = smooth_groups(smooth, groups, ", ".join, modules)
    assert [[len(step.mappings), step.strength] for step in steps] == [[2, 0.5], [1, 0.8]]
    assert [row.reason for row in steps[0].mappings] == [
        "layers.0.self_attn.qkv_proj, layers.2.self_attn.qkv_proj",
        "layers.0.mlp.gate_up_proj, layers.2.mlp.gate_up_proj",
    ]
    assert steps[1].mappings[0].norm == "model.layers.1.input_layernorm"
    for written in (steps, smooth_groups(smooth, groups, ", ".join)):
        recipe = parse_recipe(write_recipe([], header=[], left=[], smooth=written), "smoothed.yaml")
        assert tuple(row.spec for row in resolve(recipe, loaded.model).smoothings) == smooth


def test_a_recipe_that_smooths_already_is_refused(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus
) -> None:
    smooth: Any = resolve(read_recipe(resource_dir("recipes") / "w8a8_smoothquant.yaml"), loaded.model)
    with pytest.raises(RecipeError, match="cannot be advised on: it smooths"):
        advise(opened_recipe(loaded, profile, corpus, smooth, corpus.samples), GOAL)


def test_dynamic_inputs_are_offered_no_smoothing(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, samples: Sequence[TokenizedSample]
) -> None:
    dynamic = resolve(read_recipe(resource_dir("recipes") / "w8a8_dynamic.yaml"), loaded.model)
    result = advise(opened_recipe(loaded, profile, corpus, dynamic, samples), Goal(max_kl=1.0))
    assert result.smooth == ()
