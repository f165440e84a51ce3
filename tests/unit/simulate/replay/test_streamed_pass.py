"""Gradients that come back block by block, where a model's code does more than to call one block after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama import modeling_llama

from quantaudit.model.blockwise import budget
from quantaudit.model.blockwise.input_store import SMALLEST, Room
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.replay.backward_pass import RecordedPass, record_backward
from quantaudit.simulate.replay.linear_sensitivity import LinearSensitivity
from quantaudit.simulate.replay.nested import tensors_in
from quantaudit.simulate.sensitivity.prices import outside_blocks
from tests.builders import hooks, load, random_corpus, save_checkpoint, tiny_model
from tests.unit.simulate.reference import WEIGHTS_ONLY

PLAIN: Callable[..., Any] = modeling_llama.LlamaModel.forward


def embedded_again(self: Any, **kwargs: Any) -> Any:
    """Embeddings are added once more behind the last block."""
    output = PLAIN(self, **kwargs)
    output.last_hidden_state = output.last_hidden_state + self.embed_tokens(kwargs["input_ids"])
    return output


def changed_in_place(self: Any, input_ids: Tensor, **_: Any) -> Any:
    """What the first block returns is changed in place, and added behind the last one."""
    x = self.embed_tokens(input_ids)
    places = torch.arange(x.shape[1])[None]
    given = {"attention_mask": None, "position_ids": places, "position_embeddings": self.rotary_emb(x, places)}
    x = first = self.layers[0](x, **given).mul_(0.5)
    for layer in self.layers[1:]:
        x = layer(x, **given)
    return BaseModelOutputWithPast(last_hidden_state=self.norm(x + first))


@pytest.mark.parametrize("forward", [PLAIN, embedded_again, changed_in_place])
@pytest.mark.parametrize("draws", [1, 2])
def test_prices_and_gradients_are_those_of_one_graph(
    forward: Any, draws: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "UNLIMITED", Room(device=0))
    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    samples, passes = random_corpus([30, 21, 9]).samples, []
    for by_block in (False, True):
        loaded = load(folder, by_block=by_block)
        what = Experiment(
            model=loaded.model,
            architecture=loaded.architecture,
            samples=samples,
            weights=loaded.weights,
            schemes=[WEIGHTS_ONLY],
        )
        before = hooks(loaded.model)
        linears = LinearSensitivity(experiment=what.only(outside_blocks(what)))
        passes.append(record_backward(what, linears, draws=draws, seed=3))
        assert hooks(loaded.model) == before
        assert not any("forward" in vars(module) for module in loaded.model.modules())
    whole, parts = passes
    assert parts.prices == whole.prices
    assert parts.prices["lm_head", "weights_only"]
    assert parts.branches == whole.branches
    # A gradient that comes from two blocks is summed, and rounded, in another order.
    rounding = 2**-6 if forward is changed_in_place else 0.0
    assert same_gradients(parts, whole, rounding) == 3 * 3 * draws * 2
    parts.close()


def test_what_is_recorded_keeps_to_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any, all lies on disk once gradients have come back, and of those of logits one sample's wait."""
    monkeypatch.setattr(budget, "UNLIMITED", Room(device=0))
    loaded = load(save_checkpoint(tmp_path / "m", tiny_model("llama")), by_block=True)
    what = Experiment(
        model=loaded.model,
        architecture=loaded.architecture,
        samples=random_corpus([60, 50, 40]).samples,
        weights=loaded.weights,
        schemes=[WEIGHTS_ONLY],
    )
    linears, held = LinearSensitivity(experiment=what.only(outside_blocks(what))), list[int]()
    flush = linears.flush

    def flushed(**options: bool) -> None:
        flush(**options)
        held.append(sum(map(len, linears.inputs.values())))

    monkeypatch.setattr(LinearSensitivity, "flush", lambda _self, **options: flushed(**options))
    recorded = record_backward(what, linears)
    assert max(held) == 0
    kept = []
    for index in range(3):
        for call in recorded.calls.of(f"model.layers.{index}"):  # type: ignore[union-attr]
            # The last block's gradients are those that all begins from.
            values = (call.args, call.kwargs, call.output_gradients if index < 2 else {})
            kept += [tensor for tensor in tensors_in(values) if tensor.nbytes >= SMALLEST]
    assert kept == []
    recorded.close()


def same_gradients(parts: RecordedPass, whole: RecordedPass, rounding: float) -> int:
    """How many gradients were recorded, all of them equal up to a share of the largest."""
    count = 0
    for path in [f"model.layers.{index}" for index in range(3)]:
        for one, other in zip(parts.calls[path], whole.calls[path], strict=True):
            assert one.output_gradients.keys() == other.output_gradients.keys()
            for place, gradients in one.output_gradients.items():
                for g, expected in zip(gradients, other.output_gradients[place], strict=True):
                    assert float((g - expected).abs().max()) <= rounding * float(expected.abs().max())
                    count += 1
    return count


def test_a_graph_that_is_handed_on_in_an_object_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could follow it from block to block."""
    plain = modeling_llama.LlamaDecoderLayer.forward

    def forward(self: Any, hidden_states: Tensor, *args: Any, holder: Any = None, **kwargs: Any) -> Tensor:
        return plain(self, hidden_states, *args, **kwargs)

    def model_forward(self: Any, **kwargs: Any) -> Any:
        return PLAIN(self, **kwargs, holder=SimpleNamespace(x=self.embed_tokens(kwargs["input_ids"])))

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", forward)
    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", model_forward)
    loaded = load(save_checkpoint(tmp_path / "m", tiny_model("llama")), by_block=True)
    what = Experiment(
        model=loaded.model,
        architecture=loaded.architecture,
        samples=random_corpus([12, 9]).samples,
        weights=loaded.weights,
    )
    with pytest.raises(RuntimeError, match="handed a graph in a SimpleNamespace"):
        record_backward(what)
    assert not any("forward" in vars(module) for module in loaded.model.modules())
