"""Fixtures of the tests against real libraries: a card, and what llm-compressor makes of the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quantaudit.card.schema import Card
    from quantaudit.corpus.tokens import TokenizedCorpus


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, a mixture whose experts few tokens are routed to, and a text."""
    from tests.builders import save_checkpoint, tiny_model
    from tests.families import family_model

    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(folder / "dense", tiny_model("mistral"))
    save_checkpoint(folder / "mixture", family_model("mixtral"))
    rows = [{"id": f"s{i}", "domain": "ab"[i % 2], "text": f"Sample {i}: {'words, ' * (i + 4)}end."} for i in range(7)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def card(tiny_folder: Path, tiny_corpus: TokenizedCorpus) -> Card:
    """The tiny model's card, measured with the attention that llm-compressor forces, so that activations are equal."""
    from quantaudit.card.build import build_card
    from quantaudit.measure.run import measure
    from quantaudit.policy import load_policy
    from quantaudit.quant.schemes import SCHEMES
    from quantaudit.simulate.experiment import GroupOptions
    from quantaudit.simulate.run import simulate
    from quantaudit.simulate.tensors import scale_rows
    from tests.builders import load

    loaded = load(tiny_folder)
    loaded.model.set_attn_implementation("eager")
    profile = measure(loaded, tiny_corpus)
    simulation = simulate(
        loaded,
        profile,
        tiny_corpus.samples,
        list(SCHEMES.values()),
        evaluation_tokens=32,
        groups=GroupOptions(score="damage"),
    )
    return build_card(profile, scale_rows(profile), simulation, load_policy(), timings={})


@pytest.fixture(scope="session")
def artifact(tiny_folder: Path, tiny_corpus: TokenizedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as llm-compressor quantizes it over the card's whole corpus. Read only."""
    from tests.llm_compressor import W8A8, quantized_checkpoint

    target = tmp_path_factory.mktemp("artifact") / "w8a8"
    return quantized_checkpoint(tiny_folder, target, W8A8, list(tiny_corpus.samples))


@pytest.fixture
def card_file(card: Card, tmp_path: Path) -> Path:
    from quantaudit.card.schema import dump_card

    path = tmp_path / "card.json"
    path.write_text(dump_card(card))
    return path
