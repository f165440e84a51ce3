"""A model that has learned something, loaded right and loaded wrongly: READY then, and in no other way.

Everything runs through `audit`, from a folder of files to the card's verdict; what is wrong is wrong in the files. The
language is the lagged one, in which a model that attends to the wrong place is sure of the wrong word: so that a load
that changes what the model computes shows in what it predicts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantaudit.card.schema import Card
from quantaudit.errors import ModelError
from quantaudit.pipeline.audit import audit
from quantaudit.settings import Settings
from tests.builders import save_checkpoint
from tests.learned import VOCABULARY, corpus_rows, learned_checkpoint, word_tokenizer, write_corpus

Tensors = dict[str, Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
LAYER = "model.layers.{}."


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned_checkpoint(tmp_path_factory.mktemp("learned") / "lagged", "lagged")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = corpus_rows(60, lagged=True, calibration=12)
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl", rows)


def card_of(folder: Path, text: Path) -> Card:
    settings = Settings.of(str(folder), str(text), score="damage", evaluation_tokens=700, scheme_set="int8")
    return audit(settings).card


def statuses(card: Card) -> set[str]:
    return {verdict.status for verdict in card.verdict.schemes}


# Ways of loading wrongly ----------------------------------------------------------------------------------------------


def weights(change: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    """Change what is stored."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})

    return edit


def config(**changes: Any) -> Callable[[Path], None]:
    """Change what config.json says."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def both(*edits: Callable[[Path], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for step in edits:
            step(folder)

    return edit


def transpose(tensors: Tensors) -> None:
    tensors |= {k: v.T for k, v in tensors.items() if v.ndim == 2 and v.shape[0] == v.shape[1]}


def rotary_layout(tensors: Tensors) -> None:
    """Queries and keys in the order of another implementation: pairs side by side instead of halves."""
    for name, weight in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            tensors[name] = weight.view(-1, 2, 8, 64).transpose(1, 2).reshape(weight.shape)


def swap_layers(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".layers.0." in name]:
        other = name.replace(".layers.0.", ".layers.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def swap(a: str, b: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if a in name]:
            other = name.replace(a, b)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return change


def codes(tensors: Tensors, *, dtype: torch.dtype, scales: bool) -> None:
    """Projections as INT8 codes, with or without their scales."""
    for name in [name for name in tensors if "proj" in name]:
        scale = tensors[name].float().abs().amax(1, keepdim=True) / 127
        tensors[name] = (tensors[name].float() / scale).round().to(torch.int8).to(dtype)
        if scales:
            tensors[f"{name}_scale"] = scale.bfloat16()


def lora(tensors: Tensors) -> None:
    """A PEFT model that was saved without merging its adapter."""
    for name in [name for name in tensors if "q_proj" in name]:
        stem = name.removesuffix("weight")
        tensors[f"{stem}base_layer.weight"] = tensors.pop(name)
        tensors[f"{stem}lora_A.default.weight"] = torch.randn(4, 64).bfloat16()
        tensors[f"{stem}lora_B.default.weight"] = torch.randn(64, 4).bfloat16()


def third_layer(tensors: Tensors) -> None:
    tensors |= {k.replace(".1.", ".2."): v.clone() for k, v in tensors.items() if ".layers.1." in k}


def tower(tensors: Tensors) -> None:
    tensors |= {f"model.visual.blocks.{i}.attn.qkv.weight": torch.randn(48, 16).bfloat16() for i in range(2)}


def poison(tensors: Tensors) -> None:
    tensors[f"{LAYER.format(1)}mlp.up_proj.weight"][3, 5] = float("nan")


def other_words(folder: Path) -> None:
    """The tokenizer of another checkpoint: the same words, other numbers."""
    word_tokenizer((*VOCABULARY[24:48], *VOCABULARY[:24], *VOCABULARY[48:])).save_pretrained(folder)


def lose_a_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    save_file({n: t for n, t in tensors.items() if files[n].startswith("model-00001")}, folder / files[names[0]])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def rope(**settings: Any) -> Callable[[Path], None]:
    return config(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **settings})


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    # What is stored and what is said do not agree: seen before a token is run.
    "codes with scales": (weights(lambda t: codes(t, dtype=torch.int8, scales=True)), "int8"),
    "codes without scales": (weights(lambda t: codes(t, dtype=torch.int8, scales=False)), "int8"),
    "codes under an older key": (
        both(weights(lambda t: codes(t, dtype=torch.int8, scales=True)),
             config(compression_config={"quant_method": "compressed-tensors", "format": "int-quantized"})),
        "quantized",
    ),
    "FP8 said of bfloat16": (
        config(quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]}), "none are"
    ),
    "an adapter that was not merged": (weights(lora), "lacks 2 weights"),
    "more layers configured": (config(num_hidden_layers=3), "lacks 9 weights"),
    "a head untied and not stored": (weights(lambda t: t.pop(HEAD)), "lacks 1 weights"),
    "a lost shard": (lose_a_shard, "weight file is missing"),
    "a classifier": (config(architectures=["LlamaForSequenceClassification"]), "does not predict the next"),
    "another width": (config(intermediate_size=96), "another shape"),
    # Loaded, with a doubt.
    "codes as bfloat16": (weights(lambda t: codes(t, dtype=torch.bfloat16, scales=False)), "QA110"),
    "zeros": (weights(lambda t: t[f"{LAYER.format(1)}mlp.down_proj.weight"].zero_()), "QA110"),
    "fewer layers configured": (config(num_hidden_layers=1), "QA109"),
    "another layer stored": (weights(third_layer), "QA109"),
    "a tower of vision stored": (weights(tower), "QA109"),
    "biases stored and not configured": (
        weights(lambda t: t.update({f"{LAYER.format(0)}self_attn.q_proj.bias": torch.randn(64).bfloat16()})), "QA109"
    ),
    "a head tied and stored": (config(tie_word_embeddings=True), "QA109"),
    "another class": (config(architectures=["LlavaForConditionalGeneration"]), "QA112"),
    "a class of vision and language": (config(architectures=["Llama4ForConditionalGeneration"]), "QA112"),
    "not a number": (weights(poison), "QA102"),
    # Seen only in what the model predicts.
    "transposed": (weights(transpose), "QA104"),
    "another layout of rotary positions": (weights(rotary_layout), "QA104"),
    "swapped layers": (weights(swap_layers), "QA104"),
    "keys for values": (weights(swap("k_proj", "v_proj")), "QA104"),
    "another theta": (rope(rope_theta=10.0), "QA104"),
    "another scaling of positions": (rope(rope_type="linear", factor=8.0), "QA104"),
    "another count of heads": (config(num_attention_heads=8, num_key_value_heads=4, head_dim=8), "QA104"),
    "another order of the vocabulary": (other_words, "QA104"),
    "embeddings off by one": (weights(lambda t: t.update({EMBEDDING: t[EMBEDDING].roll(1, 0)})), "QA104"),
    "the embedding for the head": (weights(lambda t: t.update({HEAD: t[EMBEDDING].clone()})), "QA104"),
}  # fmt: skip


def test_loaded_right_it_is_ready(right: Path, text: Path) -> None:
    card = card_of(right, text)
    assert {v.scheme: v.status for v in card.verdict.schemes}["int8_dynamic_per_token"] == "READY"
    assert not [finding for finding in card.findings if finding.severity == "error"]
    assert card.model.doubts == []


@pytest.mark.parametrize("way", WRONG)
def test_loaded_wrongly_it_never_is(right: Path, text: Path, tmp_path: Path, way: str) -> None:
    edit, sign = WRONG[way]
    folder = Path(shutil.copytree(right, tmp_path / "wrong"))
    edit(folder)
    if not sign.startswith("QA"):
        with pytest.raises(ModelError, match=sign):
            card_of(folder, text)
        return
    card = card_of(folder, text)
    assert sign in {finding.code for finding in card.findings if finding.severity == "error"}
    assert statuses(card) == ({"NOT READY"} if sign == "QA102" else {"INCONCLUSIVE"})


def test_an_encoder_that_is_loaded_as_a_decoder_is_found_out(text: Path, tmp_path: Path) -> None:
    """A BERT that has learned nothing: what gives it away is that it reads ahead."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": len(VOCABULARY), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.BertLMHeadModel(transformers.BertConfig(**sizes, intermediate_size=128, is_decoder=True))
    save_checkpoint(tmp_path / "bert", model, word_tokenizer())
    assert "QA111" not in {finding.code for finding in card_of(tmp_path / "bert", text).findings}
    config(is_decoder=False)(tmp_path / "bert")
    card = card_of(tmp_path / "bert", text)
    assert "QA111" in {finding.code for finding in card.findings}
    assert statuses(card) == {"INCONCLUSIVE"}


def test_what_lies_in_the_folder_beside_the_model_changes_nothing(right: Path, text: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(right, tmp_path / "model"))
    settings = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 8}))
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    adapter = {f"{stem}.lora_A.weight": torch.randn(4, 64), f"{stem}.lora_B.weight": torch.randn(64, 4)}
    save_file(adapter, folder / "adapter_model.safetensors")
    save_file({"w": torch.ones(2)}, folder / "consolidated.safetensors")
    before, after = card_of(right, text), card_of(folder, text)
    assert after.model.files == before.model.files
    assert after.model.notes == ["an adapter lies in the folder (adapter_config.json) and takes no part"]
    assert [(v.status, v.kl) for v in after.verdict.schemes] == [(v.status, v.kl) for v in before.verdict.schemes]
