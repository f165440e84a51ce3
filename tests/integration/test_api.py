"""The verbs in Python take models in memory as well as specs, paths of either kind, and say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quantaudit
from quantaudit.errors import FormatError, UsageError
from quantaudit.model.loading.load import LoadedModel
from tests.builders import hooks, load, save_checkpoint, tiny_model, weight_bytes
from tests.families import family_model

SMALL = {"samples": 8, "max_length": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("api") / "tiny", tiny_model("llama"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(folder)


def test_a_model_in_memory_is_audited_like_its_checkpoint(folder: Path, loaded: LoadedModel) -> None:
    before = weight_bytes(loaded.model)
    memory = quantaudit.audit(
        model=loaded.model, tokenizer=loaded.tokenizer, progress=False, evaluation_tokens=64, **SMALL
    )
    disk = quantaudit.audit(folder, progress=False, evaluation_tokens=64, **SMALL)
    assert weight_bytes(loaded.model) == before
    assert hooks(loaded.model) == 0
    assert memory.card.model.fingerprint.startswith("memory:")
    assert memory.profile.statistics.keys() == disk.profile.statistics.keys()
    assert [row.amax for row in memory.card.sites] == [row.amax for row in disk.card.sites]
    assert [row.kl for row in memory.simulation.recipes] == [row.kl for row in disk.simulation.recipes]


def test_a_profile_of_a_model_in_memory_is_simulated_on_that_model_only(folder: Path, loaded: LoadedModel) -> None:
    profile = quantaudit.measure(loaded.model, tokenizer=loaded.tokenizer, progress=False, **SMALL)
    simulation = quantaudit.simulate(
        profile, loaded.model, tokenizer=loaded.tokenizer, progress=False, evaluation_tokens=64
    )
    assert simulation.recipes
    with pytest.raises(FormatError, match="other weights"):
        quantaudit.simulate(profile, folder, progress=False, evaluation_tokens=64)


def test_a_model_in_memory_needs_its_tokenizer_and_evaluation_mode(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        quantaudit.audit(model=loaded.model)
    with pytest.raises(UsageError, match="not a model"):
        quantaudit.audit(model=3, tokenizer=loaded.tokenizer)
    loaded.model.train()
    try:
        with pytest.raises(UsageError, match="training mode"):
            quantaudit.audit(model=loaded.model, tokenizer=loaded.tokenizer)
    finally:
        loaded.model.eval()


def test_a_model_that_cannot_be_audited_in_memory_says_why(loaded: LoadedModel) -> None:
    from copy import deepcopy

    def refused(model: object, word: str) -> None:
        with pytest.raises(UsageError, match=word):
            quantaudit.measure(model, tokenizer=loaded.tokenizer, progress=False, **SMALL)

    refused(deepcopy(loaded.model).double(), "float64")
    refused(loaded.model.model, "predicts the next token")
    refused(family_model("qwen3-moe"), "stacked")
    with pytest.raises(UsageError, match="dtype"):
        quantaudit.measure(loaded.model, tokenizer=loaded.tokenizer, dtype="float32", progress=False)
    with torch.inference_mode(), pytest.raises(UsageError, match="inference_mode"):
        quantaudit.measure(loaded.model, tokenizer=loaded.tokenizer, progress=False, **SMALL)


def test_a_shard_is_no_profile_of_the_whole(folder: Path) -> None:
    shard = quantaudit.measure(folder, progress=False, shard="1/2", **SMALL)
    with pytest.raises(FormatError, match="shard 1"):
        quantaudit.audit(folder, profile=shard, progress=False)
    with pytest.raises(FormatError, match="shard 1"):
        quantaudit.simulate(shard, progress=False)


def test_a_profile_brings_its_text_and_how_it_was_run(folder: Path) -> None:
    profile = quantaudit.measure(folder, progress=False, **SMALL)
    card = quantaudit.audit(folder, profile=profile, progress=False, evaluation_tokens=64).card
    assert card.corpus.samples == SMALL["samples"]


def test_an_option_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="sampels"):
        quantaudit.measure(folder, sampels=4)  # type: ignore[call-arg]


def test_progress_is_shown_where_it_is_asked_for(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantaudit.measure(folder, progress=True, **SMALL)
    assert "measuring: done" in capfd.readouterr().err
    quantaudit.measure(folder, **SMALL)  # no terminal, no notebook
    assert "measuring" not in capfd.readouterr().err


def test_what_verbs_return_is_shown_in_ten_lines(folder: Path, tmp_path: Path) -> None:
    audit = quantaudit.audit(folder, progress=False, evaluation_tokens=64, **SMALL)
    quantaudit.render(audit.card, str(tmp_path / "card"))
    report = quantaudit.gate("recipes/w8a8_static.yaml", tmp_path / "card" / "card.json")
    for result in (audit, audit.card, audit.profile, audit.simulation, report):
        shown = repr(result)
        assert len(shown.splitlines()) <= 10
        assert len(shown) < 4000, type(result)
