"""Formats that are not audited are refused by name, with what to do; only config.json and what lies near is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quantaudit.conform.artifacts.read import quantization_of, read_artifact
from quantaudit.conform.configuration import configure, parse
from quantaudit.errors import ModelError
from quantaudit.provenance import ModuleInfo

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}


def folder(path: Path, config: dict[str, Any], **others: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    for name, content in others.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (GPTQ, "'gptq', the format of GPTQ"),
        ({"quant_method": "awq"}, "AutoAWQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto inside transformers"),
        ({"quant_method": "auto-round"}, "AutoRound"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fine-grained FP8"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"quant_method": "mxfp4"}, "gpt-oss"),
        ({"quant_method": "modelopt"}, "ModelOpt"),
        ({"quant_method": "never-published"}, "'never-published'"),
        ({"quant_algo": "NVFP4", "producer": {"name": "modelopt"}}, "ModelOpt with the algorithm NVFP4"),
        ({"bits": 4, "group_size": 128}, "the layout of GPTQ or AWQ"),
        ({"weights": 8}, "names no quant_method"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "stored sparse"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "stored sparse"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_other_methods_are_refused_by_name(settings: dict[str, Any], named: str, nested: bool, tmp_path: Path) -> None:
    config = {"quantization_config": settings}
    with pytest.raises(ModelError) as caught:
        read_artifact(folder(tmp_path / "a", {"text_config": config} if nested else config), [])
    assert named in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("hf_quant_config", {"quantization": {"quant_algo": "FP8"}}, "ModelOpt with the algorithm FP8"),
        ("quantize_config", {"bits": 4}, "GPTQ"),
        ("quant_config", {"w_bit": 4}, "AWQ"),
    ],
)
def test_a_file_beside_says_whose_it_is(name: str, content: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read_artifact(folder(tmp_path / "a", {}, **{name: content}), [])
    assert named in caught.value.message
    assert f"{name}.json" in caught.value.message


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", {}) / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="where the folder of the artifact is wanted") as caught:
        read_artifact(path, [])
    assert str(path.parent) in str(caught.value.hint)


def test_a_gguf_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is a GGUF file"):
        read_artifact(path, [])


def test_where_a_configuration_may_lie() -> None:
    inner = {"quant_method": "compressed-tensors", "config_groups": {}}
    assert quantization_of({"quantization_config": inner}) == inner
    assert quantization_of({"compression_config": inner}) == inner
    assert quantization_of({"text_config": {"quantization_config": inner}}) == inner
    both = {"sparsity_config": {}, "quantization_config": inner}
    section = quantization_of({"compression_config": both})
    assert section is not None
    assert section["quant_method"] == "compressed-tensors"
    assert quantization_of({"quantization_config": {}}) is None


def test_a_pattern_that_is_no_expression_is_shown(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    settings = {"quant_method": "compressed-tensors", "config_groups": {}, "ignore": ["re:*lm_head"]}
    path = folder(tmp_path / "a", {"quantization_config": settings})
    save_file({"x": zeros(1)}, path / "model.safetensors")
    with pytest.raises(ModelError, match=r"`re:\*lm_head` in quantization_config is no regular expression"):
        read_artifact(path, [])


@pytest.mark.parametrize("content", [[], {"a": 1}, {"a": {"weights": ["qint8"]}}, {"a": {"activations": {}}}, None])
def test_a_quantization_map_of_other_things_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a quantization map"):
        read_artifact(folder(tmp_path, {}, quanto_qmap=content), [])


def test_a_pipe_in_an_artifact_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.bin")
    (tmp_path / "model.xml").write_text("<net/>")
    for path in (tmp_path, tmp_path / "model.xml"):
        with pytest.raises(ModelError, match="is a pipe, not a file"):
            read_artifact(path, [])


@pytest.mark.parametrize("bits", [0, -1, 65, 10**30])
def test_a_width_that_no_code_has_is_refused(bits: int) -> None:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": weights}
    with pytest.raises(ModelError, match=r"num_bits is .*, and at most 64 are known"):
        parse({"quant_method": "compressed-tensors", "config_groups": {"group": group}}, "config.json")


@pytest.mark.parametrize("target", ["re:(([a-z0-9_.])+)+!", "re:*", "re:" + "(" * 5000])
def test_a_pattern_that_cannot_be_matched_is_refused(target: str) -> None:
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    settings = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group": {"targets": [target], "weights": weights}},
    }
    name = "model.layers.0.self_attn.q_proj"
    module = ModuleInfo(name=name, classes=["Linear", "Module"], weight_shape=[8, 8])
    with pytest.raises(ModelError, match="regular expression") as caught:
        configure(settings, [module], {}, "config.json")
    assert caught.value.where == "config.json"
