"""Forward passes that begin at a block give what whole ones give, to the last bit, or are not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.forward.batches import batches, forward
from quantaudit.model.sites import discover
from quantaudit.simulate.logits import resume
from quantaudit.simulate.logits.rounding_floor import rounding_floor
from tests.builders import hooks, random_corpus, weight_bytes
from tests.families import FAMILIES, family_model


def blocks_run(model: Any, sample: TokenizedSample) -> list[str]:
    """Which decoder blocks compute something in a pass, by what runs inside them."""
    ran: list[str] = []
    handles = [
        next(model.get_submodule(path).children()).register_forward_hook(lambda _m, _a, _o, path=path: ran.append(path))
        for path in discover(model).blocks
    ]
    (batch,) = batches([sample], device=torch.device("cpu"))
    forward(model, batch)
    for handle in handles:
        handle.remove()
    return ran


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_floor_is_the_same_when_blocks_are_skipped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model(name)
    blocks, samples = discover(model).blocks, random_corpus([14, 9]).samples
    before, count = weight_bytes(model), hooks(model)
    assert resume.can_skip(model, blocks, samples)
    short = rounding_floor(model, blocks, samples)
    assert (weight_bytes(model), hooks(model)) == (before, count)
    assert not any("forward" in vars(module) for module in model.modules())
    monkeypatch.setattr(resume, "can_skip", lambda *_: False)
    assert short == rounding_floor(model, blocks, samples)
    assert short.kl[0] > 0


def test_skipped_blocks_compute_nothing() -> None:
    model = family_model("qwen3", num_hidden_layers=4)
    blocks, sample = discover(model).blocks, random_corpus([9, 9]).samples[0]
    with resume.remember_outputs(model, blocks) as outputs:
        assert set(blocks_run(model, sample)) == set(blocks)
    with resume.skipped(model, outputs, blocks[:3]):
        assert set(blocks_run(model, sample)) == {blocks[3]}
    assert set(blocks_run(model, sample)) == set(blocks)


@pytest.mark.parametrize("shared", [0, 2])
def test_where_layers_share_keys_and_values_nothing_is_skipped(shared: int) -> None:
    layers = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    model = family_model("gemma4", num_kv_shared_layers=shared, **layers)
    blocks, samples = discover(model).blocks, random_corpus([14, 9]).samples
    assert resume.can_skip(model, blocks, samples) is not bool(shared)
    assert rounding_floor(model, blocks, samples).kl[0] > 0
