"""`verify` and `advise` from the command line, on a tiny model: what they add to a card, and what they refuse."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from quantaudit.card.schema import dump_card, load_card
from quantaudit.card.seal import seal, seal_state
from quantaudit.common.resources import resource_dir
from quantaudit.measure.profile import load_profile
from quantaudit.model.loading import load
from quantaudit.pipeline import prepare as preparing
from quantaudit.pipeline.settings_of_profile import settings_of_profile
from tests.builders import save_checkpoint, tiny_model
from tests.command_line import Capture, run

STATIC = resource_dir("recipes") / "w8a8_static.yaml"
DYNAMIC = resource_dir("recipes") / "w8a8_dynamic.yaml"
MIXED = """
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      ignore: [lm_head]
      config_groups:
        attention:
          targets: ['re:.*attn.*']
          weights: {num_bits: 8, strategy: channel}
          input_activations: {num_bits: 8, strategy: token, dynamic: true}
        mlp:
          targets: ['re:.*mlp.*']
          weights: {num_bits: 8, strategy: channel}
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    # No two of them alike: near copies are no evidence.
    numbers = [", ".join(str((i + 7) * (k + 3) ** 2 % 997) for k in range(i + 8)) for i in range(15)]
    rows = [{"id": f"s{i}", "domain": "ab"[i % 2], "text": f"Sample {i}: {text}."} for i, text in enumerate(numbers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model") / "mistral", tiny_model("mistral", num_hidden_layers=1))


@pytest.fixture(scope="module")
def audited(model: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card without a simulation, and its profile. Read only."""
    from quantaudit.card.build import build_card
    from quantaudit.measure.profile import save_profile
    from quantaudit.pipeline.passes import measure_inputs
    from quantaudit.pipeline.prepare import prepare
    from quantaudit.policy import load_policy
    from quantaudit.settings import Settings

    profile = measure_inputs(prepare(Settings.of(model=str(model), corpus=str(texts))))
    folder = tmp_path_factory.mktemp("card")
    save_profile(profile, folder / "profile.safetensors")
    (folder / "card.json").write_text(dump_card(build_card(profile, [], None, load_policy(), timings={})))
    return folder


@pytest.fixture
def folder(audited: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited, tmp_path / "card"))


def test_verify_frees_the_model_it_quantized_and_adds_to_the_card_alone(
    model: Path, folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    load_model = load.load_model

    def watched(*args: Any, **options: Any) -> Any:
        gc.collect()
        assert not any(reference() for reference in loaded), "the model before is still in memory"
        found = load_model(*args, **options)
        loaded.append(weakref.ref(found.model))
        return found

    monkeypatch.setattr(preparing, "load_model", watched)
    card, save = folder / "named.json", tmp_path / "saved"
    (folder / "card.json").rename(card)
    before = card.read_text()
    # What an earlier, larger checkpoint left behind would be read in place of the new one.
    save.mkdir()
    (save / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    options = ("--card", card, "--evaluation-tokens", 32, "--save", save)
    assert run(capsys, "verify", STATIC, model, *options) == (
        2,
        "",
        f"error: {save}: folder exists and is not empty\nadd --force, or choose another --save\n",
    )
    code, out, _ = run(capsys, "verify", STATIC, model, *options, "--force")
    assert code == 0, out
    assert len(loaded) == 2
    with safe_open(save / "model.safetensors", framework="pt") as file:
        assert "model.layers.0.mlp.down_proj.input_scale" in file.keys()  # noqa: SIM118 (not a mapping)
    after = load_card(card)
    assert [row.recipe for row in after.verification] == ["w8a8_static"]
    assert seal_state(after) == "sealed"
    assert dump_card(seal(after.model_copy(update={"verification": []}))) == before
    assert not (folder / "card.json").exists()


def test_the_gate_takes_the_score_of_a_recipe_that_was_verified(
    model: Path, texts: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Estimated before, measured after; a recipe that the card knows joins it no second time."""
    card, recipe = tmp_path / "card" / "card.json", tmp_path / "mixed.yaml"
    recipe.write_text(MIXED, encoding="utf-8")
    code, _, err = run(capsys, "report", model, "--corpus", texts, "--evaluation-tokens", 512, "--out", card.parent)
    assert code == 0, err
    before = load_card(card)

    def source() -> str:
        _, out, _ = run(capsys, "gate", recipe, "--card", card, "--format", "json")
        return str(json.loads(out)["score"]["source"])

    assert source() == "estimated"
    code, out, _ = run(capsys, "verify", recipe, model, "--card", card, "--evaluation-tokens", 32)
    assert (code, source()) == (0, "estimated"), out  # a quick look decides nothing
    code, out, _ = run(capsys, "verify", recipe, model, "--card", card)
    assert code == 0, out
    assert source() == "measured"
    after = load_card(card)
    assert before.simulation is not None
    assert after.simulation is not None
    (new,) = after.simulation.recipes[len(before.simulation.recipes) :]
    (result,) = after.verification
    assert (new.name, new.title, new.digest) == ("mixed verified", "recipe mixed", result.digest)
    assert (new.kl, new.top1) == (result.predicted.kl, result.predicted.top1)
    assert new.kl_stderr is not None
    assert new.tokens == before.simulation.evaluation.tokens  # by default those of the card
    run(capsys, "verify", DYNAMIC, model, "--card", card)
    run(capsys, "verify", recipe, model, "--card", card)
    known = load_card(card).simulation
    assert known is not None
    assert known.recipes == after.simulation.recipes


def test_a_recipe_that_is_not_predicted_ends_inconclusively(
    model: Path, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The rule that finds such a recipe sends its reader here, where the result is known and the prediction is not."""
    recipe, card = tmp_path / "gptq.yaml", folder / "card.json"
    recipe.write_text(
        "quant_stage:\n  quant_modifiers:\n    GPTQModifier: {scheme: W8A8, ignore: [lm_head], targets: [Linear]}\n"
    )
    options = ("--card", card, "--evaluation-tokens", 32)
    code, out, _ = run(capsys, "gate", recipe, "--card", card)
    assert (code, "QA417" in out) == (3, True)
    code, out, _ = run(capsys, "verify", recipe, model, *options)
    (row,) = load_card(card).verification
    assert code == {"inconclusive": 3, "fail": 1}[row.outcome]
    assert row.outcome == "inconclusive", row.reason
    assert "not in the prediction: GPTQ" in out.replace("\n", " ")
    assert "predicted, in part" in out
    assert "agree with the prediction" not in out
    strict = tmp_path / "strict.yaml"
    strict.write_text("extends: default\nname: mine\nkl: {ready: 0.0, care: 0.0, reason: none}\n")
    code, out, _ = run(capsys, "verify", recipe, model, *options, "--policy", strict)
    assert (code, "INCONCLUSIVE" in out) == (3, True)  # one sample says nothing of others
    more = ("--card", card, "--evaluation-tokens", 512)
    code, out, _ = run(capsys, "verify", recipe, model, *more, "--policy", strict)
    assert (code, "NOT READY" in out) == (1, True), out


def test_a_calibration_that_loses_the_causal_mask_is_told(model: Path, folder: Path, capsys: Capture) -> None:
    for name, loses in (("basic", False), ("sequential", True)):
        options = ("--card", folder / "card.json", "--evaluation-tokens", 32, "--pipeline", name)
        _, out, _ = run(capsys, "verify", STATIC, model, *options)
        row = load_card(folder / "card.json").verification[-1]
        assert row.pipeline == name
        assert any(finding.code == "QA609" for finding in row.findings) == loses
        assert ("QA609" in out) == loses
    assert len(load_card(folder / "card.json").verification) == 2


def test_a_model_is_never_saved_over_itself(model: Path, folder: Path, capsys: Capture) -> None:
    files = sorted(model.iterdir())
    options = ("--card", folder / "card.json", "--save", model, "--force")
    code, _, err = run(capsys, "verify", STATIC, model, *options)
    assert (code, "would overwrite the model itself" in err) == (2, True)
    assert sorted(model.iterdir()) == files


def test_results_go_into_no_other_models_card(model: Path, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    card = load_card(folder / "card.json")
    other = card.model_copy(update={"model": card.model.model_copy(update={"fingerprint": "0" * 64})})
    (folder / "card.json").write_text(dump_card(other))
    for arguments in (
        ("verify", STATIC, model, "--card", folder / "card.json"),
        ("advise", STATIC, "--model", model, "--card", folder / "card.json", "--out", tmp_path / "new.yaml"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, "card is of other weights" in err) == (2, True)


def test_an_unknown_pipeline_is_refused_before_anything_is_loaded(model: Path, folder: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "verify", STATIC, model, "--card", folder / "card.json", "--pipeline", "fast")
    assert code == 2
    assert "sequential" in err


def test_a_model_is_loaded_again_in_the_dtype_and_revision_that_were_measured(folder: Path) -> None:
    profile = load_profile(folder / "profile.safetensors")
    measured = profile.provenance.model.model_copy(update={"dtype": "float32", "revision": "v1", "spec": "org/model"})
    profile = replace(profile, provenance=profile.provenance.model_copy(update={"model": measured}))
    settings = settings_of_profile(profile, "org/model", device="cpu", dtype="auto")
    assert (settings.model.dtype, settings.model.revision) == ("float32", "v1")
    elsewhere = settings_of_profile(profile, "/a/copy", dtype="float16")
    assert (elsewhere.model.dtype, elsewhere.model.revision) == ("float16", None)
    assert settings_of_profile(profile, "org/model", revision="v2").model.revision == "v2"
