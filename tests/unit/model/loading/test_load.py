"""What is loaded is what is stored: dtype, names, every weight; and nothing is left to chance."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantaudit.common.choices import parse_dtype
from quantaudit.errors import ModelError, UsageError
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.load import LoadedModel, load_config, load_model, load_skeleton, parse_device
from tests.builders import VOCABULARY, load, save_checkpoint, tiny_model


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def write_gguf(path: Path, layers: int = 1) -> None:
    """A GGUF file of two tensors and a few settings; no model that could be run."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor(name, np.zeros((16, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def edit_weights(folder: Path, change: object) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_known_devices_are_accepted(name: str) -> None:
    assert parse_device(name).type in {"cpu", "cuda"}


@pytest.mark.parametrize("name", ["gpu", "", "cpu0", "cuda:99", "meta", "🐢"])
def test_a_device_that_does_not_exist_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_device(name)
    assert caught.value.where == f"--device {name}"
    assert "auto" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["auto", "bfloat16", "float16", "float32"])
def test_known_dtypes_are_accepted(name: str) -> None:
    assert parse_dtype(name) == name


@pytest.mark.parametrize("name", ["bf16", "int8", "", "float64"])
def test_an_unknown_dtype_is_a_usage_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match="bfloat16") as caught:
        parse_dtype(name)
    assert caught.value.where == f"--dtype {name}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("named", [True, False], ids=["config names it", "config is silent"])
def test_auto_is_the_stored_dtype(tmp_path: Path, dtype: torch.dtype, named: bool) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama", dtype=dtype))
    config = json.loads((folder / "config.json").read_text())
    if not named:
        config.pop("dtype", None)
        config.pop("torch_dtype", None)
        (folder / "config.json").write_text(json.dumps(config))
    loaded = load(folder)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert loaded.info.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_a_named_dtype_is_obeyed(tiny_folder: Path, name: str) -> None:
    loaded = load(tiny_folder, dtype=name)
    assert loaded.model.dtype == getattr(torch, name)
    assert loaded.info.dtype == name


def test_every_weight_is_the_stored_one(tiny_folder: Path, tiny_loaded: LoadedModel) -> None:
    stored = load_file(tiny_folder / "model.safetensors")
    loaded = dict(tiny_loaded.model.named_parameters())
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_the_model_is_ready_to_measure(tiny_loaded: LoadedModel) -> None:
    assert not tiny_loaded.model.training
    assert tiny_loaded.device == torch.device("cpu")


def test_the_provenance_names_the_checkpoint(tiny_folder: Path, tiny_loaded: LoadedModel) -> None:
    info = tiny_loaded.info
    assert (info.spec, info.name, info.architecture, info.model_type) == (
        str(tiny_folder),
        tiny_folder.name,
        "LlamaForCausalLM",
        "llama",
    )
    assert (info.layers, info.hidden_size, info.vocab_size, info.context_length) == (3, 64, VOCABULARY, 256)
    assert info.parameters == sum(parameter.numel() for parameter in tiny_loaded.model.parameters())
    digest = hashlib.sha256((tiny_folder / "model.safetensors").read_bytes()).hexdigest()
    assert info.files == {"model.safetensors": digest}
    assert info.notes == []


def test_the_listed_modules_rebuild_the_skeleton(tiny_loaded: LoadedModel) -> None:
    modules = {module.name: module for module in tiny_loaded.info.modules}
    assert list(modules) == [name for name, _ in tiny_loaded.model.named_modules() if name]
    down = modules["model.layers.1.mlp.down_proj"]
    assert (down.classes, down.weight_shape) == (["Linear", "Module"], [64, 128])
    assert modules["model.layers.1"].weight_shape is None
    assert all(module.classes[-1] == "Module" for module in modules.values())


def test_the_configs_hash_does_not_depend_on_where_the_files_lie(folder: Path, tiny_loaded: LoadedModel) -> None:
    assert load(folder).info.config_sha256 == tiny_loaded.info.config_sha256
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert load(folder).info.config_sha256 != tiny_loaded.info.config_sha256


def test_missing_weights_are_refused_since_they_would_be_random(folder: Path) -> None:
    names = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in names])
    with pytest.raises(ModelError, match=r"lacks 2 weights.*model\.layers\.1\.mlp\.up_proj\.weight") as caught:
        load(folder)
    assert caught.value.where == str(folder)


def test_a_tied_output_projection_is_not_a_missing_weight(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama", tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load(folder).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_stored_tensors_that_are_not_used_are_noted(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.mystery": torch.ones(2)}))
    notes = load(folder).info.notes
    assert len(notes) == 1
    assert "1 stored tensors are not used, such as model.mystery" in notes[0]


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3, dtype=torch.bfloat16)}))
    with pytest.raises(ModelError, match=r"1 weights have another shape .* model\.norm\.weight is \[3\], not \[64\]"):
        load(folder)


@pytest.mark.parametrize("value", ["wide", [64]])
def test_a_configuration_with_a_value_of_another_kind_is_refused(folder: Path, value: object) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_size": value}))
    with pytest.raises(ModelError, match=r"configuration cannot be loaded: .*'hidden_size'.*int") as caught:
        load(folder)
    assert caught.value.where == str(folder)


def test_a_checkpoint_without_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError, match="tokenizer cannot be loaded") as caught:
        load(folder)
    assert "tokenizer.json" in (caught.value.hint or "")


@pytest.mark.parametrize("content", ["[]", "null", "{", "{}"])
def test_a_damaged_tokenizer_is_named(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer cannot be loaded: tokenizer\.json is not a tokenizer's file"):
        load(folder)


def test_what_a_tokenizers_compiled_code_prints_is_inert_and_no_result(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["added_tokens_decoder"] = {"0": {"content": "\x00", "special": True, "clear\x1b[2J\u202e": True}}
    path.write_text(json.dumps(settings))
    load(folder)
    out, err = capfd.readouterr()
    assert out == ""
    assert "clear\\x1b[2J\\u202e" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("share", [0.5, 1e-6])
def test_a_gguf_that_was_cut_is_named(tmp_path: Path, share: float) -> None:
    """Written by the gguf package, so that it is whole but for its end."""
    path = tmp_path / "cut.gguf"
    write_gguf(path)
    data = path.read_bytes()
    path.write_bytes(data[: max(40, int(len(data) * share))])
    checkpoint = locate(str(path))
    for attempt in (lambda: load_model(checkpoint, device=torch.device("cpu")), lambda: load_config(checkpoint)):
        with pytest.raises(ModelError, match="GGUF file is cut short, or damaged") as caught:
            attempt()
        assert caught.value.where == str(path)
        assert "download the checkpoint again" in (caught.value.hint or "")


def test_a_gguf_of_millions_of_layers_is_refused_before_they_are_built(tmp_path: Path) -> None:
    path = tmp_path / "deep.gguf"
    write_gguf(path, layers=10_878_977)
    with pytest.raises(ModelError, match="says num_hidden_layers: 10,878,977, and at most 2,000 are built"):
        load_model(locate(str(path)), device=torch.device("cpu"))


@pytest.mark.parametrize("config", [{}, {"model_type": "nonesuch"}, {"architectures": ["LlamaForCausalLM"]}])
def test_an_unknown_architecture_is_refused(folder: Path, config: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = locate(str(folder))
    with pytest.raises(ModelError, match="configuration cannot be loaded"):
        load_config(checkpoint)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(checkpoint, device=torch.device("cpu"))


def test_a_checkpoint_with_code_of_its_own_needs_trust(folder: Path) -> None:
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "x_custom", "auto_map": auto_map}))
    (folder / "configuration_x.py").write_text("raise SystemExit('foreign code ran')\n")
    with pytest.raises(ModelError) as caught:
        load_config(locate(str(folder)))
    assert "--trust-remote-code" in (caught.value.hint or "")


def test_a_model_that_is_not_a_decoder_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    import transformers

    config = transformers.T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=VOCABULARY)
    folder = save_checkpoint(tmp_path / "t5", transformers.T5ForConditionalGeneration(config))
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder with a decoder"):
        load(folder)


def test_a_skeleton_has_the_models_modules_and_no_values(tiny_folder: Path, tiny_loaded: LoadedModel) -> None:
    skeleton = load_skeleton(locate(str(tiny_folder)))
    assert [name for name, _ in skeleton.named_modules()] == [name for name, _ in tiny_loaded.model.named_modules()]
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}


@pytest.mark.parametrize("longest", [[512], "512", True])
def test_a_longest_text_that_is_no_number_is_refused(folder: Path, longest: object) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": longest}))
    with pytest.raises(ModelError, match=r"model_max_length is .*, not a number of tokens"):
        load(folder)
