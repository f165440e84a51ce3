"""Models of which a part stays in float32 run as those of one dtype do; one that runs by itself is left alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from quantaudit.model.loading.mixed_precision import reconcile_dtypes
from tests.builders import hooks, load, random_corpus, save_checkpoint, tiny_model
from tests.sweep import simulate_briefly
from tests.tiny_architectures import tiny_model as tiny_architecture

IDS = torch.arange(12)[None]


def widen_norms(model: nn.Module) -> nn.Module:
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.float()
    return model


def test_float32_norms_give_the_same_logits_as_16_bit_ones() -> None:
    expected = tiny_model("llama")(IDS).logits
    model = widen_norms(tiny_model("llama"))
    notes = reconcile_dtypes(model)
    assert len(notes) == 1
    assert "kept in float32 return bfloat16" in notes[0]
    # A product of two bfloat16 numbers, rounded once, is the same whichever of them is stored in float32.
    assert torch.equal(model(IDS).logits, expected)


def test_a_model_of_one_dtype_is_left_alone() -> None:
    model = tiny_model("llama")
    assert reconcile_dtypes(model) == []
    assert hooks(model) == 0


def test_one_of_two_dtypes_that_runs_is_left_alone() -> None:
    model = tiny_architecture("hunyuan_v1_moe")
    for name, module in model.named_modules():
        if name.endswith("gate.wg"):
            module.float()
    before = hooks(model)
    assert reconcile_dtypes(model) == []
    assert hooks(model) == before


def test_one_that_fails_for_another_reason_is_left_alone() -> None:
    model = widen_norms(tiny_model("llama"))
    model.forward = lambda **given: 1 / 0
    assert reconcile_dtypes(model) == []
    assert hooks(model) == 0


def test_a_float32_router_is_measured_and_simulated(tmp_path: Path) -> None:
    from quantaudit.measure.run import measure

    loaded = load(save_checkpoint(tmp_path, tiny_architecture("hunyuan_v1_moe")))
    routers = [m for name, m in loaded.model.named_modules() if name.endswith("gate.wg")]
    assert routers
    for router in routers:
        router.float()
    corpus = random_corpus([60, 50, 40, 30, 20, 10])
    assert "prices from gradient" in simulate_briefly(loaded, measure(loaded, corpus), corpus)
