"""Which class is loaded: the one that is named, where it predicts the next token."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

from quantaudit.errors import ModelError
from quantaudit.model.loading.classes import auto_class, class_doubts
from tests.builders import tiny_model


def config(cls: str, named: str | None) -> Any:
    built = getattr(transformers, cls)()
    built.architectures = [named] if named else None
    return built


@pytest.mark.parametrize(
    ("cls", "named", "auto"),
    [
        ("LlamaConfig", "LlamaForCausalLM", AutoModelForCausalLM),
        ("LlamaConfig", None, AutoModelForCausalLM),
        ("LlamaConfig", "LlamaModel", AutoModelForCausalLM),
        ("LlamaConfig", "ClassOfTomorrow", AutoModelForCausalLM),
        # Mapped to a text model and to one with images: what is named decides, and whole where nothing is.
        ("Llama4Config", "Llama4ForConditionalGeneration", AutoModelForImageTextToText),
        ("Llama4Config", "Llama4ForCausalLM", AutoModelForCausalLM),
        ("Llama4Config", None, AutoModelForImageTextToText),
        ("Qwen3_5Config", "Qwen3_5ForConditionalGeneration", AutoModelForImageTextToText),
        ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", AutoModelForCausalLM),
        ("Qwen2AudioConfig", "Qwen2AudioForConditionalGeneration", AutoModelForMultimodalLM),
        ("BertConfig", "BertLMHeadModel", AutoModelForCausalLM),
    ],
)
def test_the_named_class_is_loaded(cls: str, named: str | None, auto: Any) -> None:
    assert auto_class(config(cls, named), where="m") is auto


@pytest.mark.parametrize(
    ("cls", "named"),
    [
        ("BertConfig", "BertForMaskedLM"),
        ("RobertaConfig", "RobertaForQuestionAnswering"),
        ("LlamaConfig", "LlamaForSequenceClassification"),
        ("CLIPConfig", "CLIPModel"),
        ("Qwen2Config", "Qwen2ForTokenClassification"),
    ],
)
def test_what_predicts_no_next_token_is_refused(cls: str, named: str) -> None:
    with pytest.raises(ModelError, match=f"names the class {named}, which does not predict the next token") as caught:
        auto_class(config(cls, named), where="folder")
    assert caught.value.where == "folder"


@pytest.mark.parametrize("cls", ["T5Config", "BartConfig"])
def test_a_sequence_to_sequence_model_is_refused(cls: str) -> None:
    with pytest.raises(ModelError, match="is an encoder with a decoder"):
        auto_class(config(cls, None), where="folder")


@pytest.mark.parametrize(
    ("named", "count"),
    [("LlamaForCausalLM", 0), (None, 0), ("LlamaModel", 1), ("LlavaForConditionalGeneration", 1), ("Tomorrow", 1)],
)
def test_another_class_than_the_named_one_is_a_doubt(named: str | None, count: int) -> None:
    doubts = class_doubts(config("LlamaConfig", named), tiny_model("llama"))
    assert len(doubts) == count
    assert all(
        doubt.text == f"config.json names the class {named}, and LlamaForCausalLM was loaded" for doubt in doubts
    )
