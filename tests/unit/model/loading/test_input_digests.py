"""Each part that a model is loaded from has a digest of its own, which follows that part and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from quantaudit.measure.agreement import model_differences
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.in_memory import loaded_in_memory
from quantaudit.model.loading.load import LoadedModel, load_model
from quantaudit.provenance import InputDigests, ModelInfo
from tests.builders import load


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def inputs_of(loaded: LoadedModel) -> InputDigests:
    assert loaded.info.inputs is not None
    return loaded.info.inputs


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    change(content)
    path.write_text(json.dumps(content))


def set_(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content.update(values)


def new_token(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 255, "content": "<new>"})


SETTINGS = {"config", "settings", "configuration"}
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any], set[str], list[str]]] = {
    "norm": ("config.json", set_(rms_norm_eps=0.5), SETTINGS, ["config.json: rms_norm_eps"]),
    "rope": (
        "config.json",
        set_(rope_parameters={"rope_theta": 5.0, "rope_type": "default"}),
        SETTINGS,
        ["config.json: rope_parameters.rope_theta"],
    ),
    "tokenizer": (
        "tokenizer.json",
        new_token,
        {"tokenizer", "tokenizer_files", "tokenizer_parts"},
        ["tokenizer (tokenizer.json)"],
    ),
    "tokenizer config": (
        "tokenizer_config.json",
        set_(clean_up_tokenization_spaces=True),
        {"tokenizer", "tokenizer_files"},
        ["tokenizer (tokenizer_config.json)"],
    ),
    "template": (
        "tokenizer_config.json",
        set_(chat_template="{{ messages[0].content }}!"),
        {"chat_template"},
        ["chat template"],
    ),
    "generation": (
        "generation_config.json",
        set_(temperature=0.3, do_sample=True),
        {"generation", "generation_settings"},
        [],
    ),
    "where and by whom": ("config.json", set_(_name_or_path="/x", transformers_version="9"), set(), []),
    "stray": ("vocab.json", set_(a=1), set(), []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_changes_its_own_digest_alone_and_is_named(folder: Path, name: str) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    before = load(folder).info
    file, change, fields, differences = CHANGES[name]
    edit(folder / file, change)
    after = load(folder).info
    assert before.inputs is not None
    assert after.inputs is not None
    a, b = before.inputs.model_dump(), after.inputs.model_dump()
    assert {key for key in a if a[key] != b[key]} == fields
    differs = model_differences(before, after)
    assert [text.split(", ")[0] for text in differs] == differences


def test_a_template_in_a_file_of_its_own_goes_first(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}1")
    first = inputs_of(load(folder))
    edit(folder / "tokenizer_config.json", set_(chat_template="not read"))
    assert inputs_of(load(folder)) == first
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}2")
    assert inputs_of(load(folder)).chat_template != first.chat_template


def test_the_order_of_keys_and_white_space_change_nothing(folder: Path) -> None:
    before = inputs_of(load(folder))
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert inputs_of(load(folder)) == before


def test_a_generation_config_that_no_loader_could_read_has_a_digest_too(folder: Path) -> None:
    before = inputs_of(load(folder))
    (folder / "generation_config.json").write_text("{")
    assert inputs_of(load(folder)).generation != before.generation


def test_legacy_token_files_count_where_they_are_read(folder: Path) -> None:
    edit(folder / "special_tokens_map.json", set_(pad_token="</s>"))
    read = "added_tokens_decoder" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert ("special_tokens_map.json" in inputs_of(load(folder)).tokenizer_files) is read
    edit(folder / "tokenizer_config.json", set_(added_tokens_decoder={}))
    assert "special_tokens_map.json" not in inputs_of(load(folder)).tokenizer_files


MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
from .scale import SCALE


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_the_checkpoints_own_has_a_digest_where_it_ran(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert inputs_of(load(folder)).code is None
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(MODELING)
    (folder / "scale.py").write_text("SCALE = 1\n")
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit(folder / "config.json", set_(model_type="own", architectures=["OwnForCausalLM"], auto_map=auto_map))

    def trusted(name: str, scale: str) -> ModelInfo:
        """Under a name of its own: within one process transformers imports the code of a folder once."""
        place = Path(shutil.copytree(folder, folder.parent / name))
        (place / "scale.py").write_text(scale)
        return load_model(locate(str(place)), device=torch.device("cpu"), trust_remote_code=True).info

    before = trusted("one", "SCALE = 1\n")
    assert before.inputs is not None
    assert before.inputs.code is not None
    assert model_differences(before, trusted("two", "SCALE = 1\n")) == []
    assert model_differences(before, trusted("three", "SCALE = 2\n")) == ["Python code of the checkpoint"]


def test_a_weight_file_is_hashed_once_however_often_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        load(folder)
    assert sorted(hashed) == sorted(set(hashed))
    assert {"model.safetensors", "tokenizer.json"} <= set(hashed)


def test_what_text_does_not_go_through_does_not_matter(folder: Path, tiny_loaded: LoadedModel) -> None:
    info, inputs = tiny_loaded.info, inputs_of(tiny_loaded)
    other = info.model_copy(update={"inputs": inputs.model_copy(update={"chat_template": "0", "processor": "1"})})
    assert model_differences(info, other) == ["chat template", "image processor"]
    assert model_differences(info, other, {"tokenizer"}) == []
    assert model_differences(info, other, {"tokenizer", "chat_template"}) == ["chat template"]


def test_an_older_record_is_compared_by_what_it_has(tiny_loaded: LoadedModel) -> None:
    info = tiny_loaded.info
    older = info.model_copy(update={"inputs": None})
    assert model_differences(older, info) == []
    assert model_differences(older.model_copy(update={"config_sha256": "0"}), info) == ["config.json"]
    assert model_differences(info.model_copy(update={"fingerprint": "0", "files": {"a": "1"}}), info) == [
        "weights (a, model.safetensors)"
    ]


def test_a_model_in_memory_has_digests_of_its_objects(folder: Path) -> None:
    def in_memory() -> InputDigests:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return inputs_of(loaded_in_memory(model, AutoTokenizer.from_pretrained(folder)))

    before = in_memory()
    assert before == in_memory()
    edit(folder / "tokenizer.json", new_token)
    assert in_memory().tokenizer != before.tokenizer
    edit(folder / "config.json", set_(rms_norm_eps=0.5))
    assert in_memory().config != before.config
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}2")
    assert in_memory().chat_template != before.chat_template
