"""Weights on one device, text and statistics on another: every pass of every verb, on a device that is pretended.

What mixes tensors of two devices, or reads the device's memory as the processor's own, raises here as on a GPU. Not
walked are `verify`, whose checkpoints llm-compressor saves from a device that it knows, and experts block by block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from quantaudit.measure.profile import load_profile, profile_bytes
from quantaudit.measure.run import measure
from quantaudit.model.loading.load import LoadedModel
from quantaudit.pipeline.audit import audit
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.settings import Settings
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.run import simulate
from tests.builders import load, random_corpus, save_checkpoint, tiny_model
from tests.command_line import run
from tests.families import family_model
from tests.pretend_device import DEVICE, Remote, pretend_device

KINDS = ("qwen3", "qwen3.5-moe", "gpt-oss", "deepseek-v3", "falcon", "mamba2")
"""Families that differ most in what they compute: dense, with linear attention, mixtures of three kinds, a scan."""
RECIPE = Path(__file__).parents[2] / "recipes" / "w8a8_static.yaml"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"Row {i}: {i * 7919 % 997} and {i**3}."}) + "\n" for i in range(12)))
    return path


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # of another thread the device is not known
    with pretend_device() as pretended:
        yield pretended


@pytest.mark.parametrize("family", KINDS)
def test_a_report_of_any_family_keeps_to_the_device(
    family: str, text: Path, tmp_path: Path, device: torch.device
) -> None:
    folder = save_checkpoint(tmp_path / "model", family_model(family))
    settings = Settings.of(
        model=str(folder), corpus=str(text), evaluation_tokens=32, scheme_set="int8", device=str(device)
    )
    card = audit(settings).card
    assert card.environment.device == "a pretended GPU"
    simulation = card.simulation
    assert simulation is not None
    assert simulation.evaluation.price_source == "gradient", simulation.evaluation.note
    assert all(row.kl is not None for row in simulation.recipes)


def by_group(simulation: Simulation) -> dict[tuple[str, str], float | None]:
    return {(row.group, row.scheme): row.price for row in simulation.groups}


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_block_by_block_it_is_the_same_on_the_device(
    family: str, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(tmp_path / "model", family_model(family))
    corpus = random_corpus([40, 33, 24, 20, 11, 3])

    def made(loaded: LoadedModel) -> tuple[bytes, Simulation]:
        assert all(isinstance(parameter, Remote) for parameter in loaded.model.parameters() if not parameter.is_meta)
        profile = measure(loaded, corpus)
        schemes = [INT8_STATIC, INT8_DYNAMIC]
        return profile_bytes(profile), simulate(loaded, profile, corpus.samples, schemes, evaluation_tokens=32)

    whole, parts = made(load(folder, device=device)), made(load(folder, by_block=True, device=device))
    assert parts[0] == whole[0]
    assert by_group(parts[1]) == by_group(whole[1])
    assert [row.kl for row in parts[1].recipes] == [row.kl for row in whole[1].recipes]


def main(*arguments: object) -> int:
    return run(None, *arguments)[0]


def test_every_verb_that_runs_a_model_keeps_to_the_device(text: Path, tmp_path: Path, device: torch.device) -> None:
    folder = save_checkpoint(tmp_path / "model", tiny_model("llama"))
    on = ("--corpus", text, "--device", device)
    card, profile = tmp_path / "card" / "card.json", tmp_path / "card" / "profile.safetensors"
    few = ("--evaluation-tokens", 64)
    assert main("report", folder, *on, *few, "--out", tmp_path / "card", "--recipe", RECIPE) == 0
    assert main("measure", folder, *on, "--out", tmp_path / "p.safetensors", "--batch-tokens", 100) == 0
    assert load_profile(tmp_path / "p.safetensors").provenance.environment.device == "a pretended GPU"
    given = (folder, "--profile", profile, *on, *few)
    assert main("simulate", *given, "--single-groups", 3, "--out", tmp_path / "single.json") == 0
    assert main("simulate", *given, "--score", "damage", "--out", tmp_path / "damage.json") == 0
    advise = ("advise", RECIPE, "--card", card, "--model", folder, *on, "--as-good-as", "dynamic")
    assert main(*advise, "--out", tmp_path / "advised.yaml") == 3  # random weights: the gate is inconclusive
    assert main("compare", "--logits", folder, folder, *on) == 0


def test_the_device_is_no_main_memory(device: torch.device) -> None:
    """Else all of the above would pass whatever it did."""
    here, there = torch.ones(3), torch.ones(3, device=device)
    assert there.device == DEVICE
    assert torch.equal((there + there.cpu().to(device)).cpu(), here * 2)
    for mixed in (
        lambda: there + here,
        lambda: there @ here,
        lambda: torch.cat([there, here]),
        lambda: there.add_(here),
    ):
        with pytest.raises(RuntimeError, match="tensors are on cuda:0 and in main memory"):
            mixed()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
