"""The audit inside a real `oneshot`: it passes, it stops before anything is quantized, it says when it is too late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import quantaudit
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import AuditError
from quantaudit.integrations.verdict import own_tokens
from quantaudit.measure.profile import load_profile
from quantaudit.quant.observers import observer_of
from quantaudit.quant.ranges import site_qparams
from tests.builders import PAD, differences, hooks, save_checkpoint, tiny_model, weight_bytes
from tests.families import family_model
from tests.llm_compressor import DYNAMIC, W8A8, loader, open_model

AUDIT = """
audit_stage:
  audit_modifiers:
    AuditModifier: {policy: POLICY, profile: PROFILE}
"""


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The modifier registers itself; no session outlives a test."""
    import quantaudit.integrations.llmcompressor  # noqa: F401

    yield
    from llmcompressor.core import reset_session

    reset_session()


@pytest.fixture
def tame(tmp_path: Path) -> Path:
    """A checkpoint without outliers, of which a static scale zeroes little."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_model("llama").config).bfloat16()
    return save_checkpoint(tmp_path / "tame", model)


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    """The same with one outlier channel, so large that a static scale zeroes the rest of that input."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_model("llama").config).bfloat16()
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[-1] *= 2000
    return save_checkpoint(tmp_path / "wild", model)


def run(
    model: Any, recipe: str, data: Any, *, policy: str = "default", profile: Path | None = None, **options: Any
) -> None:
    from llmcompressor import oneshot

    text = AUDIT.replace("POLICY", policy).replace("PROFILE", "null" if profile is None else str(profile)) + recipe
    oneshot(model=model, dataset=data, recipe=text, **options)


def linears(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def quantized(model: Any) -> set[str]:
    """Modules with a scheme of which every weight has a scale that is a number above zero."""
    return {
        name
        for name in linears(model)
        if getattr(model.get_submodule(name), "quantization_scheme", None) is not None
        and bool((model.get_submodule(name).weight_scale > 0).all())
    }


@torch.no_grad()
def changed(model: Any, reference: Any, corpus: TokenizedCorpus) -> bool:
    """Whether a model's output is another than before: schemes and scales alone could lie unused."""
    ids = torch.from_numpy(corpus.samples[0].ids)[None]
    found, expected = model(ids).logits, reference(ids).logits
    return bool(torch.isfinite(found).all()) and not torch.equal(found, expected)


def test_a_sane_model_passes_and_is_quantized(tame: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    model, reference = open_model(tame), open_model(tame)
    samples = list(tiny_corpus.samples)
    before = hooks(model)
    run(model, W8A8, loader(samples), profile=tmp_path / "p.safetensors")
    assert hooks(model) == before
    assert quantized(model) == linears(model) - {"lm_head"}
    assert changed(model, reference, tiny_corpus)

    seen = load_profile(tmp_path / "p.safetensors")
    assert seen.provenance.unmeasured == []
    assert seen.provenance.corpus.tokens == sum(len(sample.ids) for sample in samples)
    assert seen.provenance.environment.attention == "eager"
    with torch.no_grad(), quantaudit.observe(reference) as observation:
        for sample in samples:
            reference(torch.from_numpy(sample.ids)[None])
    expected = observation.profile()
    assert seen.statistics.keys() == expected.statistics.keys()
    for key, value in expected.statistics.items():
        assert not differences(seen.statistics[key].distribution, value.distribution), key
    # What the audit saw is what the quantization saw.
    for layer in range(3):
        amax = seen.statistics[f"layers.{layer}.mlp.down_proj.input", "calibration"].channel_amax.max()
        found = model.get_submodule(f"model.layers.{layer}.mlp.down_proj").input_scale
        assert float(found) == pytest.approx(amax / 127.5, rel=2**-8)


@pytest.mark.parametrize("observer", ["minmax", "static_minmax"])
def test_the_scales_that_are_judged_are_those_that_are_saved(
    tame: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path, observer: str
) -> None:
    model = open_model(tame)
    recipe = W8A8.replace("observer: static_minmax", f"observer: {observer}")
    run(model, recipe, loader(list(tiny_corpus.samples)), profile=tmp_path / "p.safetensors")
    seen = load_profile(tmp_path / "p.safetensors")
    compared = 0
    for site in seen.sites:
        for member in site.members if site.kind == "linear_input" and site.layer is not None else []:
            module = model.get_submodule(member)
            args = module.quantization_scheme.input_activations
            qparams = site_qparams(seen, site.name, args, observer_of(args))
            assert qparams is not None
            assert float(qparams.scale) == pytest.approx(float(module.input_scale), rel=2**-7), member
            compared += 1
    assert compared == 21


def test_behind_smoothquant_it_sees_smoothed_activations(
    tame: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    from llmcompressor import oneshot

    smooth = "smooth_stage:\n  smooth_modifiers:\n    SmoothQuantModifier: {smoothing_strength: 0.8}\n"
    path = tmp_path / "p.safetensors"
    recipe = smooth + AUDIT.replace("POLICY", "default").replace("PROFILE", str(path)) + W8A8
    model, plain = open_model(tame), open_model(tame)
    oneshot(model=model, dataset=loader(list(tiny_corpus.samples)), recipe=recipe)
    seen = load_profile(path)
    module = model.get_submodule("model.layers.1.self_attn.q_proj")
    amax = seen.statistics["layers.1.self_attn.qkv_proj.input", "calibration"].channel_amax.max()
    assert float(module.input_scale) == pytest.approx(amax / 127.5, rel=2**-7)
    with torch.no_grad(), quantaudit.observe(plain) as observation:
        for sample in tiny_corpus.samples:
            plain(torch.from_numpy(sample.ids)[None])
    key = ("layers.1.self_attn.qkv_proj.input", "calibration")
    assert observation.profile().statistics[key].channel_amax.max() > 1.5 * amax


def test_an_outlier_stops_the_recipe_before_a_weight_is_touched(
    wild: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    model = open_model(wild)
    before, count = weight_bytes(model), hooks(model)
    with pytest.raises(AuditError, match=r"QA302 model\.layers\.1\.mlp\.down_proj") as stop:
        run(model, W8A8, loader(list(tiny_corpus.samples)), profile=tmp_path / "p.safetensors")
    after = weight_bytes(model)
    assert {name: after[name] for name in before} == before
    assert hooks(model) == count
    assert "before anything was quantized" in str(stop.value)
    assert "nothing simulated" in str(stop.value)
    assert "layers.0" not in str(stop.value)
    assert load_profile(tmp_path / "p.safetensors").sites


def test_a_dynamic_recipe_may_have_outliers(wild: Path, tiny_corpus: TokenizedCorpus) -> None:
    model = open_model(wild)
    run(model, DYNAMIC, loader(list(tiny_corpus.samples)))
    assert quantized(model) == linears(model) - {"lm_head"}
    assert not [name for name, _ in model.named_parameters() if name.endswith("input_scale")]
    assert changed(model, open_model(wild), tiny_corpus)


def test_a_target_that_is_ignored_is_not_judged(wild: Path, tiny_corpus: TokenizedCorpus) -> None:
    """The very recipe that the outlier stops above, without the module that has it."""
    model, outlier = open_model(wild), "model.layers.1.mlp.down_proj"
    recipe = W8A8.replace("[lm_head]", f"[lm_head, {outlier}]")
    run(model, recipe, loader(list(tiny_corpus.samples)))
    assert quantized(model) == linears(model) - {"lm_head", outlier}
    for name in quantized(model):
        assert float(model.get_submodule(name).input_scale) > 0, name
    assert changed(model, open_model(wild), tiny_corpus)


def test_a_policy_of_ones_own_decides(wild: Path, tame: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    import yaml

    from quantaudit.policy import load_policy

    for limit, folder, fails in ((1.0, wild, False), (1e-6, tame, True)):
        policy = load_policy().model_dump()
        policy |= {"name": "ours"}
        policy["zeroed_fraction"]["warning"] = limit
        path = tmp_path / f"{limit}.yaml"
        path.write_text(yaml.safe_dump(policy))
        if fails:
            with pytest.raises(AuditError, match="QA302"):
                run(open_model(folder), W8A8, loader(list(tiny_corpus.samples)), policy=str(path))
        else:
            model = open_model(folder)
            run(model, W8A8, loader(list(tiny_corpus.samples)), policy=str(path))
            assert quantized(model) == linears(model) - {"lm_head"}


def test_infinite_activations_stop_the_recipe(tame: Path, tiny_corpus: TokenizedCorpus) -> None:
    model = open_model(tame)
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[3] = float("inf")
    with pytest.raises(AuditError, match=r"QA102 model\.layers\.1\.mlp\.down_proj"):
        run(model, W8A8, loader(list(tiny_corpus.samples)))


@pytest.mark.parametrize("pipeline", ["sequential", "basic"])
def test_a_shared_pass_is_too_late_and_is_told_before_it_starts(
    tame: Path, tiny_corpus: TokenizedCorpus, pipeline: str
) -> None:
    model = open_model(tame)
    before, count = weight_bytes(model), hooks(model)
    with pytest.raises(AuditError, match="too late: it shares its calibration pass with QuantizationModifier"):
        run(model, W8A8, loader(list(tiny_corpus.samples)), pipeline=pipeline)
    after = weight_bytes(model)
    assert {name: after[name] for name in before} == before
    # Its observers are not attached either: the calibration has not begun for anyone behind the audit.
    assert hooks(model) == count


def test_an_audit_behind_the_quantization_is_too_late(tame: Path, tiny_corpus: TokenizedCorpus) -> None:
    from llmcompressor import oneshot

    recipe = W8A8 + AUDIT.replace("POLICY", "default").replace("PROFILE", "null")
    with pytest.raises(AuditError, match="QuantizationModifier stands before AuditModifier"):
        oneshot(model=open_model(tame), dataset=loader(list(tiny_corpus.samples)), recipe=recipe)


def test_an_audit_without_data_is_an_error(tame: Path) -> None:
    from llmcompressor import oneshot

    with pytest.raises(AuditError, match="no calibration data"):
        oneshot(model=open_model(tame), recipe=AUDIT.replace("POLICY", "default").replace("PROFILE", "null") + DYNAMIC)


def test_padding_enters_no_statistic(tame: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    """Batches of three, shuffled again at every iteration: masks are found by what is in the batch."""
    samples = list(tiny_corpus.samples)[:9]
    width = max(len(sample.ids) for sample in samples)
    rows = []
    for sample in samples:
        ids, mask = np.full(width, PAD), np.zeros(width, np.int64)
        ids[: len(sample.ids)], mask[: len(sample.ids)] = sample.ids, 1
        rows.append({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)})
    data: Any = DataLoader(rows, batch_size=3, shuffle=True)  # type: ignore[arg-type]
    run(open_model(tame), W8A8, data, profile=tmp_path / "p.safetensors")
    seen = load_profile(tmp_path / "p.safetensors")
    for key, value in seen.statistics.items():
        assert value.tokens == sum(len(sample.ids) for sample in samples), key
    assert sorted(sample.tokens for sample in seen.samples) == sorted(len(sample.ids) for sample in samples)
    tokens = {int(token) for value in seen.statistics.values() for token in value.peaks.token}
    assert PAD not in tokens


def test_a_recipe_with_the_modifier_reloads(tame: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    from llmcompressor.recipe import Recipe

    model = open_model(tame)
    run(model, W8A8, loader(list(tiny_corpus.samples)))
    model.save_pretrained(tmp_path / "q", save_compressed=True)
    names = [
        type(modifier).__name__ for modifier in Recipe.create_instance(str(tmp_path / "q" / "recipe.yaml")).modifiers
    ]
    assert names == ["AuditModifier", "QuantizationModifier"]


def test_experts_are_audited_on_the_tokens_that_they_are_calibrated_on(
    tiny_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "moe", family_model("qwen3-moe"))
    recipe = W8A8.replace("[lm_head]", "[lm_head, 're:.*mlp.gate$']")
    chosen = open_model(folder).config.num_experts_per_tok
    for everywhere in (True, False):
        model, path = open_model(folder), tmp_path / f"{everywhere}.safetensors"
        data = loader(list(tiny_corpus.samples))
        run(model, recipe, data, profile=path, moe_calibrate_all_experts=everywhere)
        seen = load_profile(path)
        assert seen.experts == ("all" if everywhere else "routed")
        judged = seen if everywhere else own_tokens(seen)
        inputs = [site for site in judged.sites if site.kind == "expert_input"]
        first = [site for site in inputs if site.name.startswith("layers.0.") and "gate_up" in site.name]
        routed = sum(seen.statistics[site.name, "calibration"].tokens for site in first)
        assert routed == chosen * seen.provenance.corpus.tokens
        for site in inputs:
            scale = float(model.get_submodule(site.members[0]).input_scale)
            args = model.get_submodule(site.members[0]).quantization_scheme.input_activations
            qparams = site_qparams(judged, site.name, args, observer_of(args))
            assert qparams is not None
            assert float(qparams.scale) == pytest.approx(scale, rel=2**-7), site.name


@pytest.mark.parametrize(("name", "loses"), [("mistral", True), ("llama", False), ("qwen3", False)])
def test_a_calibration_without_causal_mask_is_told(
    name: str, loses: bool, tiny_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    """Against the model itself: the output of its attention in the pipeline is not its output on its own."""
    from llmcompressor import oneshot

    from quantaudit.integrations.llmcompressor import AuditModifier

    folder = save_checkpoint(tmp_path / name, tiny_model(name, dtype=torch.float32))
    samples = list(tiny_corpus.samples)
    path = tmp_path / "p.safetensors"
    audit, reference = AuditModifier(profile=str(path)), open_model(folder)
    oneshot(model=open_model(folder), dataset=loader(samples), recipe=[audit])
    assert any(finding.code == "QA609" for finding in audit.findings) == loses
    with torch.no_grad(), quantaudit.observe(reference) as observation:
        for sample in samples:
            reference(torch.from_numpy(sample.ids)[None])
    key = ("layers.0.self_attn.o_proj.input", "calibration")
    seen, expected = load_profile(path).statistics[key], observation.profile().statistics[key]
    assert bool(differences(seen.distribution, expected.distribution)) == loses
