"""Every verb that runs a model, with the model on a device: what a pretended and a real one are both walked through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from quantaudit.card.schema import Card
from quantaudit.measure.profile import load_profile, profile_bytes
from quantaudit.measure.run import measure
from quantaudit.model.loading.load import LoadedModel
from quantaudit.pipeline.audit import audit
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.settings import Settings
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.run import simulate
from tests.builders import load, random_corpus
from tests.command_line import run

RECIPE = Path(__file__).parents[1] / "recipes" / "w8a8_static.yaml"
KINDS = ("qwen3", "qwen3.5-moe", "gpt-oss", "deepseek-v3", "falcon", "mamba2")
"""Families that differ most in what they compute: dense, with linear attention, mixtures of three kinds, a scan."""


def save_text(folder: Path) -> Path:
    """Twelve short texts."""
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"Row {i}: {i * 7919 % 997} and {i**3}."}) + "\n" for i in range(12)))
    return path


def main(*arguments: object) -> int:
    """The exit code of a command."""
    return run(None, *arguments)[0]


def check_report(folder: Path, text: Path, device: torch.device) -> Card:
    """A report whose prices come from gradients, and whose scores are all finite."""
    settings = Settings.of(
        model=str(folder), corpus=str(text), evaluation_tokens=32, scheme_set="int8", device=str(device)
    )
    card = audit(settings).card
    simulation = card.simulation
    assert simulation is not None
    assert simulation.evaluation.price_source == "gradient", simulation.evaluation.note
    assert all(row.kl is not None for row in simulation.recipes)
    return card


def check_by_block(folder: Path, device: torch.device) -> None:
    """The same profile, prices and scores block by block as of the whole model."""
    corpus = random_corpus([40, 33, 24, 20, 11, 3])

    def made(loaded: LoadedModel) -> tuple[bytes, Simulation]:
        assert all(parameter.device == device for parameter in loaded.model.parameters() if not parameter.is_meta)
        profile = measure(loaded, corpus)
        schemes = [INT8_STATIC, INT8_DYNAMIC]
        return profile_bytes(profile), simulate(loaded, profile, corpus.samples, schemes, evaluation_tokens=32)

    whole, parts = made(load(folder, device=device)), made(load(folder, by_block=True, device=device))
    assert parts[0] == whole[0]
    prices = [{(row.group, row.scheme): row.price for row in simulation.groups} for _, simulation in (whole, parts)]
    assert prices[0] == prices[1]
    assert [row.kl for row in parts[1].recipes] == [row.kl for row in whole[1].recipes]


def check_verbs(folder: Path, text: Path, place: Path, device: torch.device, name: str) -> Path:
    """Every verb but `verify` on a checkpoint of random weights, which no gate can conclude on. Returns the card.

    name: that the device has on a card.
    """
    on: tuple[Any, ...] = ("--corpus", text, "--device", device)
    card, few = place / "card" / "card.json", ("--evaluation-tokens", 32, "--schemes", "int8")
    assert main("report", folder, *on, *few, "--out", place / "card", "--recipe", RECIPE) == 0
    assert main("measure", folder, *on, "--out", place / "p.safetensors", "--batch-tokens", 100) == 0
    assert load_profile(place / "p.safetensors").provenance.environment.device == name
    given = (folder, "--profile", place / "card" / "profile.safetensors", *on, *few)
    assert main("simulate", *given, "--single-groups", 3, "--out", place / "single.json") == 0
    assert main("simulate", *given, "--score", "damage", "--out", place / "damage.json") == 0
    advise = ("advise", RECIPE, "--card", card, "--model", folder, *on, "--as-good-as", "dynamic")
    assert main(*advise, "--out", place / "advised.yaml") == 3
    assert main("compare", "--logits", folder, folder, *on) == 0
    return card
