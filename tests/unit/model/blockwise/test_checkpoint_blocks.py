"""A block that is read alone is that of the whole model, bit for bit, and nothing else is read for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantaudit.errors import ModelError
from quantaudit.model.blockwise import checkpoint_blocks
from quantaudit.model.blockwise.checkpoint_blocks import why_whole
from tests.builders import load, save_checkpoint, tiny_model
from tests.families import family_model


def names(model: Any) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if tensor.is_meta}


@pytest.mark.parametrize("family", ["qwen3", "mixtral", "gemma3", "llama4"])
def test_weights_of_each_block_are_there_while_it_is_called_and_no_others(family: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model(family, num_hidden_layers=2))
    whole, parts = load(folder), load(folder, by_block=True)
    weights = parts.weights
    assert weights is not None
    expected = whole.model.state_dict()
    assert list(parts.model.state_dict()) == list(expected)
    inside = {name for name in expected if name.startswith("model.layers.")}
    assert names(parts.model) == inside
    for index, path in enumerate(weights.blocks):
        weights.bring(index)
        here = {name for name in inside if name.startswith(f"{path}.")}
        assert names(parts.model) == inside - here
        found = parts.model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected.keys() - (inside - here))
        assert all(found[name].dtype == expected[name].dtype for name in expected)
    weights.drop()
    assert names(parts.model) == inside


def test_a_plain_call_brings_what_it_needs(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3-moe", num_hidden_layers=3))
    whole, parts = load(folder), load(folder, by_block=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(parts.model(ids, use_cache=False).logits, whole.model(ids, use_cache=False).logits)
    assert parts.weights is not None
    assert parts.weights.loads == 3


def test_only_the_tensors_of_a_block_are_read_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    folder = save_checkpoint(tmp_path / "m", model, max_shard_size="60KB")
    parts = load(folder, by_block=True)
    read: list[str] = []
    original = checkpoint_blocks.convert_and_load_state_dict_in_model

    def watched(model: Any, state: dict[str, Any], *rest: Any) -> Any:
        read.extend(state)
        return original(model, state, *rest)

    monkeypatch.setattr(checkpoint_blocks, "convert_and_load_state_dict_in_model", watched)
    assert parts.weights is not None
    parts.weights.bring(1)
    assert set(read) == {name for name in model.state_dict() if name.startswith("model.layers.1.")}


def test_a_file_that_changed_is_not_read_again(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    parts = load(folder, by_block=True)
    stored = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor * 2 for name, tensor in stored.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ModelError, match=r"model\.layers\.0 cannot be read again: its files changed"):
        parts.model(torch.arange(5)[None], use_cache=False)


def test_what_is_missing_or_odd_in_a_block_is_found_as_in_the_whole_model(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"].fill_(0.5)
    stored["model.layers.0.self_attn.q_proj.weight"].fill_(0.25)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    whole, parts = load(folder), load(folder, by_block=True)
    assert parts.info == whole.info
    assert [(doubt.module, doubt.count) for doubt in parts.info.doubts] == [("model.layers.0.self_attn.q_proj", 2)]
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, which would be random: model\.layers\.1\.mlp\.up_proj"):
        load(folder, by_block=True)


def test_models_that_run_whole_say_why() -> None:
    model = tiny_model("llama")
    blocks = ("model.layers.0", "model.layers.1")
    assert why_whole(model, blocks) is None
    model.model.layers[1].mlp = model.model.layers[0].mlp
    assert why_whole(model, blocks) == "model.layers.1.mlp.gate_proj.weight is used by several blocks"
    model = tiny_model("llama")
    model.all_tied_weights_keys = {"model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight"}
    assert why_whole(model, blocks) == "model.layers.1.mlp.up_proj.weight is tied to another weight"
    model = tiny_model("llama")
    model.model.embed_tokens = model.model._modules.pop("embed_tokens")
    assert why_whole(model, blocks) == "its first weights are those of a decoder block"
