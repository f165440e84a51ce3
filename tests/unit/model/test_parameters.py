"""Weights outside Linears: what a recipe could mean, and what nobody quantizes; and where the decoder is."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from quantaudit.model.experts import linearize, same_outputs, split_rightly_by_oneshot
from quantaudit.model.parameters import other_weights
from quantaudit.model.sites import decoder_layers, discover
from quantaudit.model.structure import text_decoder
from tests.families import family_model
from tests.tiny_architectures import tiny_model


class Holder(nn.Module):
    """A module with one parameter of its own."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.randn(shape)))


@pytest.mark.parametrize(
    ("path", "name", "shape", "listed"),
    [
        ("experts", "gate_up_proj", (4, 8, 8), True),
        ("block_sparse_experts", "w1", (32, 8), True),
        ("my_linear", "weight", (8, 8), True),
        ("mixer", "x_proj_weight", (2, 8, 8), False),
        ("router", "weight", (4, 8), None),
        ("gate", "weight", (4, 8), None),
        ("moe_statics", "e_score_correction_bias", (1, 4), None),
        ("mixer", "A_log", (8, 8), None),
        ("attention", "time_mix_key", (1, 1, 8), None),
        ("resampler", "latents", (4, 8), None),
        ("embeddings", "position_embedding", (4, 8), None),
        ("norm", "weight", (4, 8), None),
    ],
)
def test_only_what_a_recipe_could_mean_counts(
    path: str, name: str, shape: tuple[int, ...], listed: bool | None
) -> None:
    model = nn.Module()
    model.add_module(path, Holder(name, *shape))
    rows = list(other_weights(model, ()))
    assert [row.weights for row in rows] == ([] if listed is None else [listed])
    assert list(other_weights(model, {path})) == []


@pytest.mark.parametrize("model_type", ["modernbert-decoder", "gpt2", "opt", "biogpt", "mamba"])
def test_the_decoder_holds_the_layers_and_the_embedding(model_type: str) -> None:
    model = tiny_model(model_type)
    decoder = text_decoder(model)
    assert any(module is model.get_input_embeddings() for module in decoder.modules())
    assert len(decoder_layers(model)[1]) == 2
    members = {member for group in discover(model).groups for member in group.members}
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} <= members


def test_the_tower_of_a_vision_language_model_is_not_its_decoder() -> None:
    model = tiny_model("llava")
    path, _ = decoder_layers(model)
    assert "language_model" in path


def test_experts_with_sizes_of_their_own_are_split_alike() -> None:
    """Hunyuan's configuration lists one size for each layer, which llm-compressor takes for a number."""
    sizes = {"moe_topk": [2, 2], "moe_intermediate_size": [96, 96], "num_shared_expert": [1, 1], "num_experts": 4}
    common = {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    config = transformers.HunYuanMoEV1Config(**common, **sizes, intermediate_size=128, pad_token_id=256)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        split = linearize(model)
        assert split.notes == [
            "experts of 2 layers were split into Linears by llm-compressor's linearization, as `oneshot` does"
        ]
        assert split.wrong == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
        after = model(input_ids=ids).logits
    torch.testing.assert_close(after, before)
    assert len(discover(model).expert_lists) == 2


def test_experts_that_were_split_wrongly_are_found_out() -> None:
    model, other = family_model("mixtral"), family_model("mixtral")
    linearize(other)
    stacked, split = model.model.layers[0].mlp.experts, other.model.layers[0].mlp.experts
    assert same_outputs(stacked, split)
    split[2].gate_proj.weight.data, split[2].up_proj.weight.data = (
        split[2].up_proj.weight.data, split[2].gate_proj.weight.data,
    )  # fmt: skip
    assert not same_outputs(stacked, split)
    assert not same_outputs(stacked, nn.Linear(64, 64))


def test_a_limit_that_llm_compressor_loses_is_found_out_and_kept() -> None:
    """MiniMax-M3's experts keep gate and up projection within `swiglu_limit`, which few tokens reach."""
    model = tiny_model("minimax_m3_vl_text")
    stacked = model.get_submodule("model.layers.0.mlp.experts")
    assert not split_rightly_by_oneshot(stacked, model.config)
    split = linearize(model)
    assert split.wrong == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert same_outputs(stacked, model.get_submodule("model.layers.0.mlp.experts"))


def test_what_oneshot_splits_rightly_is_not_doubted() -> None:
    model = family_model("mixtral")
    assert split_rightly_by_oneshot(model.model.layers[0].mlp.experts, model.config)
    assert linearize(model).wrong == []
