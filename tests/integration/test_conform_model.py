"""An artifact of another model than the card's: other settings, tokenizer or weights, and tensors of no module."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from quantaudit.card.schema import Card
from quantaudit.conform.run import Conformance
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import ModelError
from tests.artifacts import DOWN, codes_of, compare, rewrite
from tests.builders import save_checkpoint, tiny_model, tiny_tokenizer
from tests.llm_compressor import W8A8, open_model, quantize, quantized_checkpoint

Change = Callable[[Path, dict[str, Any]], Path]


@pytest.fixture
def changed(artifact: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the artifact with other settings in its config.json; without those that are None."""

    def change(**settings: Any) -> Path:
        target = tmp_path / "changed"
        shutil.copytree(artifact, target)
        config = {**json.loads((target / "config.json").read_text()), **settings}
        config = {key: value for key, value in config.items() if value is not None}
        (target / "config.json").write_text(json.dumps(config))
        return target

    return change


def messages(result: Conformance, code: str) -> list[str]:
    return [row.message for row in result.findings if row.code == code]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_act": "gelu"}, ["`hidden_act`", "`gelu`", "`silu`"]),
        ({"rms_norm_eps": 1e-3}, ["`rms_norm_eps`", "`0.001`", "`1e-06`"]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ["rope_theta", "`500000.0`", "`10000.0`"]),
        ({"rope_parameters": None, "rope_theta": 5e5}, ["rope_theta", "`500000.0`", "`10000.0`"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, ["rope_type", "`linear`"]),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, ["`model_type`", "`mistral`", "`llama`"]),
        ({"architectures": ["MistralForCausalLM"]}, ["`architectures`", "`MistralForCausalLM`"]),
        ({"tie_word_embeddings": True}, ["`tie_word_embeddings`", "`True`", "`False`"]),
        ({"num_hidden_layers": "three"}, ["num_hidden_layers"]),
    ],
)
def test_a_setting_of_another_model_fails_and_is_named(
    changed: Callable[..., Path], card: Card, settings: dict[str, Any], named: list[str]
) -> None:
    result = compare(changed(**settings), card)
    assert result.outcome == "fail"
    text = " ".join(messages(result, "QA624"))
    assert [word for word in named if word not in text] == []


def test_heads_that_leave_shapes_as_they_are_are_found(changed: Callable[..., Path], card: Card) -> None:
    inputs = card.model.inputs
    assert inputs is not None
    assert inputs.configuration is not None
    heads, keys, size = (
        inputs.configuration[f"{n}"] for n in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    assert isinstance(heads, int)
    assert isinstance(keys, int)
    assert isinstance(size, int)
    other = {"num_attention_heads": heads * 2, "num_key_value_heads": keys * 2, "head_dim": size // 2}
    text = " ".join(messages(compare(changed(**other), card), "QA624"))
    assert [name for name in other if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_parameters": None, "rope_theta": 10000},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {"type": "default"}},
        {"rms_norm_eps": None},
        {"torch_dtype": "bfloat16", "dtype": None},
        {"use_cache": False, "transformers_version": "4.40.0", "_name_or_path": "elsewhere", "attention_dropout": 0.5},
        {"sliding_window": None, "mlp_bias": None, "initializer_range": 0.5},
    ],
)
def test_what_means_the_same_passes(changed: Callable[..., Path], card: Card, settings: dict[str, Any]) -> None:
    result = compare(changed(**settings), card)
    assert (result.outcome, result.findings) == ("pass", [])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"eos_token_id": 7}, "`eos_token_id`"),
        ({"max_position_embeddings": 64}, "`max_position_embeddings`"),
        ({"sliding_window": 4}, "`sliding_window`"),
        ({"rope_theta": 5e5}, "`rope_theta`"),
    ],
)
def test_what_changes_its_use_or_what_engines_may_read_is_a_warning(
    changed: Callable[..., Path], card: Card, settings: dict[str, Any], named: str
) -> None:
    result = compare(changed(**settings), card)
    assert result.outcome == "pass"
    assert [(row.code, row.severity) for row in result.findings] == [("QA624", "warning")]
    assert named in result.findings[0].message


def test_a_card_without_settings_or_weights_is_inconclusive(artifact: Path, card: Card) -> None:
    older = card.model_copy(update={"model": card.model.model_copy(update={"inputs": None, "weights": None})})
    result = compare(artifact, older)
    assert result.outcome == "inconclusive"
    assert codes_of(result) == {("QA628", None)}
    assert len(result.findings) == 2


# Tokenizer, template, generation --------------------------------------------------------------------------------------


def test_files_that_are_saved_again_pass(artifact: Path, card: Card, tiny_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "saved"
    shutil.copytree(artifact, target)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(target)
    text = json.loads((target / "tokenizer.json").read_text())
    text["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (target / "tokenizer.json").write_text(json.dumps(text, indent=7))
    assert compare(target, card).findings == []


def test_another_vocabulary_fails_another_template_and_generation_warn(
    artifact: Path, card: Card, tmp_path: Path
) -> None:
    target = tmp_path / "other"
    shutil.copytree(artifact, target)
    tokenizer = tiny_tokenizer(chat_template=False)
    tokenizer.save_pretrained(target)
    GenerationConfig(eos_token_id=9, temperature=0.3, do_sample=True).save_pretrained(target)
    result = compare(target, card)
    assert result.outcome == "pass"
    assert {row.severity for row in result.findings} == {"warning"}
    text = " ".join(messages(result, "QA625"))
    assert all(word in text for word in ("chat template", "`eos_token_id`", "`temperature`", "`0.3`"))

    path = target / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    result = compare(target, card)
    assert result.outcome == "fail"
    assert "its tokenizer is another than the model's: model" in messages(result, "QA625")

    path.write_text("{")
    assert "cannot be loaded" in " ".join(messages(compare(target, card), "QA625"))


DAMAGED = {
    "cut": b'{"model": {"type"',
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "object": b"{}",
    "no text": b"\xff{}",
}


@pytest.mark.parametrize("content", [pytest.param(value, id=key) for key, value in DAMAGED.items()])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_of_the_tokenizer_fails_and_is_named(
    name: str, content: bytes, artifact: Path, card: Card, tmp_path: Path
) -> None:
    target = tmp_path / "damaged"
    shutil.copytree(artifact, target)
    tiny_tokenizer(chat_template=False).save_pretrained(target)
    (target / name).write_bytes(content)
    if (name, content) == ("tokenizer_config.json", b"{}"):
        assert compare(target, card).outcome != "fail"
        return
    result = compare(target, card)
    assert result.outcome == "fail"
    text = f"its tokenizer cannot be loaded: {name} is not a tokenizer's file"
    assert [row.message for row in result.findings if row.severity == "error"] == [text]


def test_a_tokenizer_of_code_of_its_own_is_a_warning(artifact: Path, card: Card, tmp_path: Path) -> None:
    target = tmp_path / "code"
    shutil.copytree(artifact, target)
    tiny_tokenizer(chat_template=False).save_pretrained(target)
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (target / "tokenizer_config.json").write_text(json.dumps(own))
    result = compare(target, card)
    assert result.outcome != "fail"


@pytest.mark.parametrize("content", ["[]", "null", "{"])
def test_a_generation_config_that_is_none_is_refused(content: str, artifact: Path, card: Card, tmp_path: Path) -> None:
    target = tmp_path / "generation"
    shutil.copytree(artifact, target)
    (target / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"is not a JSON object|cannot be read") as caught:
        compare(target, card)
    assert caught.value.where == str(target / "generation_config.json")


# Weights --------------------------------------------------------------------------------------------------------------


def test_exchanged_layers_are_found_and_named(artifact: Path, card: Card, tmp_path: Path) -> None:
    tensors = load_file(artifact / "model.safetensors")
    swap = {"model.layers.0.": "model.layers.2.", "model.layers.2.": "model.layers.0."}
    changes = {
        name: tensors[swap[name[:15]] + name[15:]]
        for name in tensors
        if name[:15] in swap and not name.endswith(".input_scale")
    }
    result = compare(rewrite(artifact, tmp_path / "swapped", changes), card)
    assert result.outcome == "fail"
    found = {row.module: row.message for row in result.findings if row.code == "QA627"}
    assert len(found) == 14
    assert "it is `model.layers.2.mlp.up_proj.weight` of the model" in found["model.layers.0.mlp.up_proj"]


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.norm", "lm_head", "model.layers.1.input_layernorm"])
def test_another_unquantized_weight_is_found(artifact: Path, card: Card, tmp_path: Path, name: str) -> None:
    def other(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
        return (noise * tensor.float().std() if tensor.ndim > 1 else tensor * (1 + 0.3 * noise)).to(tensor.dtype)

    result = compare(rewrite(artifact, tmp_path / "other", {f"{name}.weight": other}), card)
    assert codes_of(result) == {("QA627", name)}
    assert result.outcome == "fail"


def test_weights_of_another_seed_fail(card: Card, tiny_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    save_checkpoint(folder, tiny_model("llama", seed=5))
    result = compare(quantized_checkpoint(folder, tmp_path / "q", W8A8, list(tiny_corpus.samples)), card)
    linears = [row for row in result.findings if row.code == "QA627"]
    assert result.outcome == "fail"
    assert len(linears) >= 3 * 7


SMOOTHED = """
quant_stage:
  quant_modifiers:
    {modifier}
    {quantizer}:
      ignore: [lm_head]
      config_groups:
        group_0:
          targets: [Linear]
          weights: {{num_bits: {bits}, symmetric: {symmetric}, strategy: group, group_size: 32}}
"""


@pytest.mark.parametrize(
    ("modifier", "quantizer", "bits", "symmetric"),
    [
        ("SmoothQuantModifier: {smoothing_strength: 0.8}", "QuantizationModifier", 8, True),
        ("SmoothQuantModifier: {smoothing_strength: 0.5}", "GPTQModifier", 4, False),
        ("", "GPTQModifier", 4, True),
        ("", "GPTQModifier", 2, False),
    ],
)
def test_weights_that_a_modifier_changes_pass(
    card: Card,
    tiny_folder: Path,
    tiny_corpus: TokenizedCorpus,
    tmp_path: Path,
    modifier: str,
    quantizer: str,
    bits: int,
    symmetric: bool,
) -> None:
    recipe = SMOOTHED.format(modifier=modifier, quantizer=quantizer, bits=bits, symmetric=str(symmetric).lower())
    model = open_model(tiny_folder)
    quantize(model, recipe, list(tiny_corpus.samples), pipeline="sequential")
    model.save_pretrained(tmp_path / "q", save_compressed=True)
    result = compare(tmp_path / "q", card)
    assert [row for row in result.findings if row.code == "QA627" and row.severity != "info"] == []

    tensors = load_file(tmp_path / "q/model.safetensors")
    swap = {"model.layers.0.": "model.layers.2.", "model.layers.2.": "model.layers.0."}
    changes = {name: tensors[swap[name[:15]] + name[15:]].clone() for name in tensors if name[:15] in swap}
    save_file({**tensors, **changes}, tmp_path / "q/model.safetensors", metadata={"format": "pt"})
    assert [row for row in compare(tmp_path / "q", card).findings if row.code == "QA627" and row.severity == "error"]


# Too much -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.99.mlp.down_proj.weight", torch.zeros(8, 8)),
        ("model.layers.99.mlp.down_proj.weight_packed", torch.zeros(8, 8, dtype=torch.int32)),
        ("model.layers.1.self_attn.q_proj.bias", torch.zeros(8)),
        ("other.weight", torch.zeros(8)),
    ],
)
def test_a_tensor_that_no_module_has_is_found(
    artifact: Path, card: Card, tmp_path: Path, name: str, tensor: torch.Tensor
) -> None:
    result = compare(rewrite(artifact, tmp_path / "more", {name: tensor}), card)
    assert result.outcome == "fail"
    assert codes_of(result) == {("QA626", name.rpartition(".")[0])}


def test_what_is_known_to_be_harmless_may_be_there(artifact: Path, card: Card, tmp_path: Path) -> None:
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.rotary_emb.inv_freq": torch.ones(8),
        "mtp.layers.0.mlp.down_proj.weight": torch.ones(8, 8),
        f"{DOWN}.weight_zero_point": torch.zeros(1, dtype=torch.int8),
    }
    assert compare(rewrite(artifact, tmp_path / "more", more), card).findings == []


# Weights that a modifier may change -----------------------------------------------------------------------------------


Edit = Callable[[dict[str, torch.Tensor]], None]


def norms_alone(tensors: dict[str, torch.Tensor]) -> None:
    """Layer norms × 1.2, which nothing makes up for."""
    tensors.update({name: x * 1.2 for name, x in tensors.items() if "layers." in name and "norm" in name})


def embedding_rolled(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].roll(1, 0).contiguous()


def final_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] *= 1.5


def edited(folder: Path, edit: Edit, settings: dict[str, Any] | None = None) -> Path:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if settings is not None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["transform_config"] = settings
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def smoothed(tiny_folder: Path, tiny_corpus: TokenizedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoothed") / "q"
    model = open_model(tiny_folder)
    modifier = "SmoothQuantModifier: {smoothing_strength: 0.8}"
    recipe = SMOOTHED.format(modifier=modifier, quantizer="QuantizationModifier", bits=8, symmetric="true")
    quantize(model, recipe, list(tiny_corpus.samples), pipeline="sequential")
    model.save_pretrained(folder, save_compressed=True)
    return folder


@pytest.mark.parametrize("edit", [embedding_rolled, final_norm])
def test_smoothing_excuses_no_more_than_it_changes(smoothed: Path, card: Card, tmp_path: Path, edit: Edit) -> None:
    folder = edited(Path(shutil.copytree(smoothed, tmp_path / "q")), edit)
    assert [row for row in compare(folder, card).findings if row.code == "QA627" and row.severity == "error"]


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({"config_groups": {}}, "fail"),
        ({"x": 1}, "fail"),
        ({"config_groups": {"R": {"type": "hadamard", "apply": [{"targets": ["none"], "location": "input"}]}}}, "fail"),
        (
            {"config_groups": {"R": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "input"}]}}},
            "inconclusive",
        ),
    ],
    ids=["empty", "none", "of no module", "of Linears"],
)
def test_a_rotation_excuses_the_weights_that_it_rotates(
    artifact: Path, card: Card, tmp_path: Path, settings: dict[str, Any], outcome: str
) -> None:
    def exchanged(tensors: dict[str, torch.Tensor]) -> None:
        first, other = (f"model.layers.{n}.self_attn.q_proj." for n in (0, 2))
        for name in [name for name in tensors if name.startswith(first)]:
            twin = other + name.removeprefix(first)
            tensors[name], tensors[twin] = tensors[twin].clone(), tensors[name].clone()

    folder = edited(Path(shutil.copytree(artifact, tmp_path / "q")), exchanged, settings)
    assert compare(folder, card).outcome == outcome
    embedding = edited(folder, embedding_rolled)
    assert [row.module for row in compare(embedding, card).findings if row.code == "QA627" and row.severity == "error"]


def test_norms_that_nothing_makes_up_for_are_others(artifact: Path, card: Card, tmp_path: Path) -> None:
    folder = edited(Path(shutil.copytree(artifact, tmp_path / "q")), norms_alone)
    found = [row.module for row in compare(folder, card).findings if row.code == "QA627"]
    assert found
    assert all("norm" in str(module) for module in found)
