"""Weights that no training leaves are found; those that it does are not."""

from __future__ import annotations

import pytest
import torch

from quantaudit.model.loading.weights import weight_doubts
from tests.builders import tiny_model
from tests.families import family_model

NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
def test_random_weights_are_weights(name: str, dtype: torch.dtype) -> None:
    assert weight_doubts(tiny_model(name, dtype=dtype)) == []


@pytest.mark.parametrize(("value", "words"), [(0.0, "a single value"), (0.25, "a single value")])
def test_a_matrix_of_one_value_is_none(value: float, words: str) -> None:
    model = tiny_model("llama")
    model.get_submodule(NAME).weight.data.fill_(value)
    (doubt,) = weight_doubts(model)
    assert (doubt.kind, doubt.module, doubt.count) == ("values", NAME, 1)
    assert words in doubt.text


def test_one_value_that_differs_makes_it_one() -> None:
    model = tiny_model("llama")
    model.get_submodule(NAME).weight.data.fill_(0.0)[5, 7] = 1.0
    assert weight_doubts(model) == []


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_read_as_weights_are_none(bits: int) -> None:
    model = tiny_model("llama")
    half = 2 ** (bits - 1)
    for layer in model.model.layers:
        weight = layer.self_attn.q_proj.weight
        weight.data = torch.randint(-half, half, weight.shape).to(weight.dtype)
    (doubt,) = weight_doubts(model)
    assert (doubt.module, doubt.count) == ("model.layers.0.self_attn.q_proj", 3)
    assert "whole numbers" in doubt.text


def test_stacked_experts_are_looked_at_one_by_one() -> None:
    model = family_model("mixtral")
    assert weight_doubts(model) == []
    model.model.layers[1].mlp.experts.down_proj.data[2] = 0.0
    (doubt,) = weight_doubts(model)
    assert doubt.module == "model.layers.1.mlp.experts.down_proj[2]"
