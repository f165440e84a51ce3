"""A model that reads ahead is distinguished from one that does not, whatever mixes its tokens."""

from __future__ import annotations

import pytest
import torch
import transformers

from quantaudit.model.forward.causal import ahead_doubts
from tests.builders import VOCABULARY, random_corpus, sample
from tests.families import family_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3.5", "gemma3", "mixtral", "bloom", "mamba2", "llama4"])
def test_decoders_do_not(family: str) -> None:
    assert ahead_doubts(family_model(family), random_corpus([12, 9]).samples, CPU) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_encoder_does(dtype: torch.dtype) -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    for is_decoder in (True, False):
        config = transformers.BertConfig(**sizes, intermediate_size=128, is_decoder=is_decoder)
        model = transformers.BertLMHeadModel(config).to(dtype).eval()
        doubts = ahead_doubts(model, random_corpus([12, 9]).samples, CPU)
        assert [doubt.kind for doubt in doubts] == ([] if is_decoder else ["ahead"])


def test_nothing_is_said_where_there_is_no_text_to_try_it_on() -> None:
    assert ahead_doubts(family_model("qwen2.5"), [sample([3])], CPU) == []
