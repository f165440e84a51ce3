"""A planted fault through the whole pipeline: SQNR passes, the model breaks, and the card says why."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from quantaudit.card.schema import Card
from quantaudit.pipeline.audit import audit
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.settings import Settings
from tests.builders import save_checkpoint, tiny_model

FIRST = 1
"""The token that every sample starts with, and the only one that is massive."""


def planted() -> Any:
    """A model in which one channel of every down_proj input is huge for the first token and nothing otherwise.

    The residual channel 0 carries a flag that only the first token's embedding sets, and that no Linear writes to. One
    row of gate_proj and up_proj reads it; down_proj hardly hears the channel that they make. What the model computes
    lies in the ordinary channels, and one scale for the whole tensor leaves them no level.
    """
    model = tiny_model("llama")
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 0
        embedding[FIRST, 0] = 60
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
            for reader in (layer.mlp.gate_proj, layer.mlp.up_proj):
                reader.weight[-1] = 0
                reader.weight[-1, 0] = 8
            layer.mlp.down_proj.weight[:, -1] = 1e-4
    return model


def written_by(model: Any, tokens: int, seed: int) -> list[int]:
    """A text that the model itself finds likely, so that its perplexity is that of a model that works."""
    generator = torch.Generator().manual_seed(seed)
    ids = [FIRST]
    with torch.no_grad():
        while len(ids) < tokens:
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :250].float()
            ids.append(int(torch.multinomial((logits / 0.5).softmax(-1), 1, generator=generator)))
    return ids


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    folder = tmp_path_factory.mktemp("planted")
    model = planted()
    rows = [{"input_ids": written_by(model, 30, seed), "domain": "ab"[seed % 2]} for seed in range(16)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    saved = save_checkpoint(folder / "model", model)
    return audit(Settings.of(model=str(saved), corpus=str(corpus), device="cpu", evaluation_tokens=256)).card


def test_sqnr_passes_where_nothing_ordinary_is_left(card: Card) -> None:
    assert card.simulation is not None
    rows = [
        row
        for row in card.simulation.sites
        if row.scheme == INT8_STATIC.name and row.observer == "absolute_maximum" and row.group.endswith("down_proj")
    ]
    assert len(rows) == 3
    for row in rows:
        assert row.sqnr_db is not None
        assert row.zeroed_fraction is not None
        assert row.sqnr_db > 20
        assert row.zeroed_fraction > 0.9


def test_the_card_says_not_ready_and_names_zeros_and_damage(card: Card) -> None:
    schemes = {row.scheme: row for row in card.verdict.schemes}
    static = schemes[INT8_STATIC.name]
    assert static.status == "NOT READY"
    assert {group.group.rpartition(".")[2] for group in static.worst_groups} == {"down_proj"}
    for group in static.worst_groups:
        assert "round to zero" in group.explanation
        assert "SQNR" in group.explanation
        assert group.damage is not None
        assert group.damage > 0.01
    (zeroed,) = (finding for finding in card.findings if finding.code == "QA302")
    assert "would pass an SQNR check" in zeroed.message


def test_its_recipes_agree_with_its_prices(card: Card) -> None:
    """The worst groups by price are those by damage, and static scales break what dynamic ones keep."""
    assert card.simulation is not None
    static = [row for row in card.simulation.groups if row.scheme == INT8_STATIC.name and row.price is not None]
    worst = sorted(static, key=lambda row: -(row.price or 0.0))[:3]
    assert {row.projection for row in worst} == {"down_proj"}
    kl = {row.name: row.kl or 0.0 for row in card.simulation.recipes}
    assert kl[INT8_STATIC.name] > 10 * kl[INT8_DYNAMIC.name]
