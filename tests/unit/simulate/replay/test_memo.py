"""A replay that remembers what ran before a group gives, bit for bit, what a replay of the whole block gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quantaudit.model.experts import linearize
from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.sites import discover
from quantaudit.quant.schemes import INT8_DYNAMIC
from quantaudit.simulate.quantized.modules import input_quantizer, quantize_linear, quantized
from quantaudit.simulate.replay import replay_groups as block_module
from quantaudit.simulate.replay.memo import record, remembered
from quantaudit.simulate.replay.recorded_calls import record_calls
from quantaudit.simulate.replay.replay_groups import clean_runs, inner_paths
from tests.builders import hooks, random_corpus, tiny_model, weight_bytes
from tests.families import family_model
from tests.unit.simulate.reference import damage_rows

NAMES = ["llama", "phi3", "gemma4", "gpt2", "mamba2", "qwen3.5-moe", "mixtral"]


@pytest.mark.parametrize("name", NAMES)
def test_every_group_is_replayed_bit_for_bit(name: str) -> None:
    model = tiny_model(name, num_hidden_layers=2) if name == "llama" else family_model(name)
    linearize(model)
    architecture = discover(model)
    weights_before, forwards = weight_bytes(model), own_forwards(model)
    calls = record_calls(model, architecture.blocks, random_corpus([12, 9]).samples)
    saved = 0
    for index, path in enumerate(architecture.blocks):
        block = model.get_submodule(path)
        inside = [group for group in architecture.groups if group.layer == index]
        with torch.no_grad():
            runs = clean_runs(block, path, inside, calls[path], {})
        for group in inside:
            weights = {m: quantize_linear(model.get_submodule(m), INT8_DYNAMIC.weights) for m in group.members}
            quantizer = input_quantizer(INT8_DYNAMIC, None, torch.device("cpu"))
            members = inner_paths(group, path)
            with torch.no_grad(), quantized(model, [group], weights, {group.name: quantizer}):
                for run in runs:
                    whole = first_tensor(block(*run.call.args, **run.call.kwargs))
                    with remembered(block, run.memo, members):
                        short = first_tensor(block(*run.call.args, **run.call.kwargs))
                    assert torch.equal(whole, short), group.name
                    saved += len(run.memo.skippable(members))
    assert saved > 0
    assert weight_bytes(model) == weights_before
    assert own_forwards(model) == forwards


def own_forwards(model: nn.Module) -> list[object]:
    """Forward functions set on modules themselves, as offloading does with experts."""
    return [module.__dict__.get("forward") for module in model.modules()]


def test_a_llama_block_starts_at_the_group() -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    architecture = discover(model)
    (path,) = architecture.blocks
    call, _ = record_calls(model, [path], random_corpus([8, 7]).samples)[path]
    block = model.get_submodule(path)
    before = hooks(model)
    with torch.no_grad():
        _, memo = record(block, call.args, call.kwargs)
    assert hooks(model) == before
    groups = {group.projection: inner_paths(group, path) for group in architecture.groups if group.layer == 0}
    outer = {"input_layernorm", "self_attn", "post_attention_layernorm"}
    assert set(memo.skippable(groups["qkv_proj"])) == {"input_layernorm"}
    assert set(memo.skippable(groups["o_proj"])) == {"input_layernorm"}
    assert set(memo.skippable(groups["gate_up_proj"])) == outer
    assert set(memo.skippable(groups["down_proj"])) == outer
    # Attention also returns its weights, which this implementation leaves at None; the MLP returns down_proj's output.
    assert {name: memo.pass_through(members) for name, members in groups.items()} == {
        "qkv_proj": None,
        "o_proj": "self_attn",
        "gate_up_proj": None,
        "down_proj": "mlp",
    }


class Twisted(nn.Module):
    """A block that calls one module twice, writes into the output of another, and drops a third's."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.written, self.first, self.last = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.written(self.twice(self.twice(x)))
        y += self.first(x)
        z: Tensor = self.last(y)
        return z


def test_what_ran_twice_or_was_written_into_is_computed_again() -> None:
    torch.manual_seed(0)
    block, x = Twisted(), torch.randn(1, 3, 4)
    with torch.no_grad():
        clean, memo = record(block, (x,), {})
        assert memo.skippable(["last"]) == ["first"]
        assert memo.skippable(["first"]) == []
        assert memo.pass_through(["first"]) is None
        with remembered(block, memo, ["last"]):
            assert torch.equal(block(x), clean)
    # A group that never ran in this call changes nothing: all that can be is remembered.
    assert set(memo.skippable(["absent"])) == {"first", "last"}


def test_full_memory_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    samples = random_corpus([12, 9, 5]).samples
    whole = damage_rows(model, discover(model), samples, [INT8_DYNAMIC], {})
    monkeypatch.setattr(block_module, "MEMO_BYTES", 1)
    assert damage_rows(model, discover(model), samples, [INT8_DYNAMIC], {}) == whole


def test_a_ranking_needs_no_replay_of_weights_alone() -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    samples = random_corpus([12, 9]).samples
    whole = damage_rows(model, discover(model), samples, [INT8_DYNAMIC], {})
    ranked = damage_rows(model, discover(model), samples, [INT8_DYNAMIC], {}, weights_only=False)
    assert [row.damage for row in ranked] == [row.damage for row in whole]
    assert {row.damage_weights_only for row in ranked} == {None}
