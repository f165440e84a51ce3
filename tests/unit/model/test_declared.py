"""Declared sizes: what nobody can build is refused before memory is asked for, and every published shape passes."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from quantaudit.errors import ModelError
from quantaudit.model.declared import EXPERTS, LAYERS, check_declared, check_experts, check_files
from quantaudit.model.loading.checkpoint import locate
from tests.builders import load

TRILLION = {
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "vocab_size": 163_840,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 10_485_760,
    "rope_theta": 50_000_000.0,
    "bos_token_id": 163_584,
}


@pytest.mark.parametrize("kind", sorted(CONFIG_MAPPING))
def test_every_architecture_of_transformers_passes_as_it_is_published(kind: str) -> None:
    try:
        settings = CONFIG_MAPPING[kind]().to_dict()
    except Exception as error:  # those that need another's parts, or the Hub, to be made
        pytest.skip(str(error)[:80])
    check_declared(settings, "config.json")


def test_a_model_of_a_trillion_parameters_passes() -> None:
    check_declared(TRILLION, "config.json")
    check_declared({"text_config": TRILLION, "vision_config": {"depth": 48, "image_size": 4096}}, "config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, f"num_hidden_layers: 1,000,000,000, and at most {LAYERS:,}"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers: 1,000,000,000"),
        ({"text_config": {"n_layer": 10**30}}, "n_layer: a number of more than 30 digits"),
        ({"vision_config": [{"depth": 5000}]}, "depth: 5,000"),
        ({"num_local_experts": 10**7}, f"num_local_experts: 10,000,000, and at most {EXPERTS:,}"),
        ({"num_labels": 10**9}, "num_labels: 1,000,000,000"),
        ({"num_attention_heads": 2**40}, "num_attention_heads"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"num_hidden_layers": -(2**63)}, "num_hidden_layers: -9,223,372,036,854,775,808, and none can be"),
    ],
)
def test_what_nobody_can_build_is_named_with_its_limit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        check_declared(changes, "config.json")
    assert caught.value.where == "config.json"


def test_more_experts_than_can_be_linears_are_refused() -> None:
    check_experts(61 * 384)
    with pytest.raises(ModelError, match=f"100,001 experts, and at most {EXPERTS:,}"):
        check_experts(EXPERTS + 1)


def edited(source: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(source, target)
    config = target / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return target


@pytest.mark.parametrize("changes", [{"vocab_size": 50_000_000}, {"intermediate_size": 2**26}])
def test_weights_that_are_not_stored_are_given_no_memory(
    tiny_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = edited(tiny_folder, tmp_path / "model", **changes)
    with pytest.raises(ModelError, match="bytes of weights that are not stored, such as") as caught:
        load(folder)
    assert caught.value.where == str(folder)


def test_a_folder_with_a_pipe_in_it_is_refused_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    os.mkfifo(tmp_path / "model" / "generation_config.json.tmp")
    with pytest.raises(ModelError, match="is a pipe, not a file"):
        locate(str(tmp_path / "model"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    with pytest.raises(ModelError, match="is a socket, not a file"):
        check_files(tmp_path)


def test_a_side_file_of_gigabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2 << 30)  # a hole: no disk is used
    with pytest.raises(ModelError, match="2,147,483,648 bytes, and at most 1,073,741,824 are read"):
        check_files(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 2**31}}},
        {"added_tokens": [{"id": 10**9, "content": "<s>"}]},
        {"padding": {"strategy": {"Fixed": 10**9}}},
    ],
)
def test_ids_that_a_tokenizer_would_make_room_for_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    for indent in (None, 2):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=indent))
        with pytest.raises(ModelError, match="where a tokenizer counts"):
            check_files(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '{"model": {"vocab": {"12345678": 7, ": 12345678": 8}}, "truncation": {"max_length": 123456789}}',
        '{"model": {"vocab": {"a": 262143}}}',
        "no JSON: 1234567890",
    ],
)
def test_ids_of_published_tokenizers_pass(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    check_files(tmp_path)
