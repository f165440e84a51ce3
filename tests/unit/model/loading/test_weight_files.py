"""The weight files that are found, and fingerprinted, are those that transformers opens, and all lie in the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantaudit.errors import ModelError
from quantaudit.model.loading.checkpoint import check_loaded, file_states, fingerprint, locate
from quantaudit.model.loading.stored_tensors import watch_files
from tests.builders import load, save_checkpoint, tiny_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def write_index(folder: Path, weight_map: dict[str, Any], name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def in_two(folder: Path, first: str, second: str) -> dict[str, str]:
    """The weights in two files, named by the paths given; their hashes by those."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {first: names[::2], second: names[1::2]}
    for path, part in halves.items():
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        save_file({name: tensors[name] for name in part}, folder / path, metadata={"format": "pt"})
    write_index(folder, {name: path for path, part in halves.items() for name in part})
    return {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in halves}


def refused(folder: Path, message: str) -> ModelError:
    with pytest.raises(ModelError, match=message) as caught:
        locate(str(folder))
    return caught.value


def test_two_shards_with_one_base_name_are_two_files(folder: Path) -> None:
    hashes = in_two(folder, "a/part.safetensors", "b/part.safetensors")
    info = load(folder).info
    assert info.files == hashes
    assert info.fingerprint == hashlib.sha256("".join(hashes.values()).encode()).hexdigest()
    before = fingerprint(locate(str(folder)))
    path = folder / "b" / "part.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert fingerprint(locate(str(folder))) != before


def test_a_shard_named_twice_is_one_file(folder: Path) -> None:
    in_two(folder, "a.safetensors", "b.safetensors")
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    names = sorted(index)
    write_index(folder, {**index, names[0]: f"./{index[names[0]]}"})
    assert sorted(load(folder).info.files) == ["a.safetensors", "b.safetensors"]


OUTSIDE: dict[str, Callable[[Path], str]] = {
    "absolute": lambda elsewhere: str(elsewhere / "model.safetensors"),
    "above": lambda elsewhere: f"../{elsewhere.name}/model.safetensors",
    "down and up": lambda elsewhere: f"sub/../../{elsewhere.name}/model.safetensors",
    "drive": lambda elsewhere: r"C:\\models\\model.safetensors",
    "backslashes": lambda elsewhere: f"..\\{elsewhere.name}\\model.safetensors",
}


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("through", ["index", "config"])
def test_weights_outside_the_folder_are_refused(tiny_folder: Path, folder: Path, kind: str, through: str) -> None:
    elsewhere = Path(shutil.copytree(tiny_folder, folder.parent / "elsewhere"))
    name = OUTSIDE[kind](elsewhere)
    (folder / "model.safetensors").unlink()
    source = folder / INDEX
    if through == "index":
        write_index(folder, dict.fromkeys(load_file(elsewhere / "model.safetensors"), name))
    else:
        source = folder / "config.json"
        source.write_text(json.dumps({**json.loads(source.read_text()), "transformers_weights": name}))
    assert refused(folder, "names a file outside the folder").where == str(source)


@pytest.mark.parametrize("single", [True, False])
def test_links_are_followed_and_the_bytes_behind_them_hashed(tiny_folder: Path, folder: Path, single: bool) -> None:
    """Shards are linked where disks are shared: what counts is what is loaded, and only a name may not lead outside."""
    stored = folder.parent / "stored.safetensors"
    (folder / "model.safetensors").rename(stored)
    name = "model.safetensors" if single else "shard.safetensors"
    (folder / name).symlink_to(stored)
    if not single:
        write_index(folder, dict.fromkeys(load_file(stored), name))
    model = load(folder)
    assert dict(model.info.files) == {name: hashlib.sha256(stored.read_bytes()).hexdigest()}
    before = fingerprint(locate(str(folder)))
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x01")
    assert fingerprint(locate(str(folder))) != before


@pytest.mark.parametrize("target", ["shard.safetensors", "nowhere"])
def test_links_in_a_circle_or_to_nothing_are_refused(folder: Path, target: str) -> None:
    write_index(folder, dict.fromkeys(load_file(folder / "model.safetensors"), "shard.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "shard.safetensors").symlink_to(target)
    refused(folder, "a link that leads to itself" if target == "shard.safetensors" else "weight file is missing")


def test_the_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    in_two(folder, "a.safetensors", "b.safetensors")
    expected = fingerprint(locate(str(folder)))
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../..") / "blobs" / str(number))
    assert fingerprint(locate(str(snapshot))) == expected


def test_what_the_configuration_names_is_what_is_loaded_and_fingerprinted(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, folder / "other.safetensors", {"format": "pt"})
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "transformers_weights": "other.safetensors"}))
    loaded = load(folder)
    assert list(loaded.info.files) == ["other.safetensors"]
    weight = loaded.model.get_parameter("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(weight, 2 * tensors["model.layers.0.mlp.down_proj.weight"])
    write_index(folder, dict.fromkeys(tensors, "other.safetensors"), "mine.safetensors.index.json")
    config.write_text(json.dumps({**settings, "transformers_weights": "mine.safetensors.index.json"}))
    assert load(folder).info.fingerprint == loaded.info.fingerprint


@pytest.mark.parametrize("value", ["weights.bin", 3, [], {"a": 1}, ""])
def test_a_configuration_that_names_no_weights_is_refused(folder: Path, value: Any) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_weights": value}))
    refused(folder, "transformers_weights is ")


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}])
def test_an_index_that_names_no_file_is_refused(folder: Path, value: Any) -> None:
    write_index(folder, {"model.norm.weight": value})
    refused(folder, "weight index cannot be read")


def test_a_single_file_next_to_an_index_of_others_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", tiny_model("llama"), max_shard_size="100KB")
    save_checkpoint(tmp_path / "other", tiny_model("llama"))
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    refused(folder, "has model.safetensors and an index of other files")


def test_files_that_are_not_loaded_change_no_fingerprint(folder: Path) -> None:
    before = load(folder).info
    shutil.copy(folder / "model.safetensors", folder / "copy.safetensors")
    (folder / "README.md").write_text("words")
    (folder / "vocab.txt").write_text("words")
    assert load(folder).info == before


def test_the_files_that_transformers_opens_are_seen(folder: Path) -> None:
    in_two(folder, "a/part.safetensors", "b/part.safetensors")
    with watch_files() as seen:
        load(folder)
    assert sorted(os.path.relpath(path, folder) for path in seen) == ["a/part.safetensors", "b/part.safetensors"]


def test_loading_other_files_than_are_fingerprinted_is_refused(folder: Path) -> None:
    checkpoint = locate(str(folder))
    states = file_states(checkpoint)
    check_loaded(checkpoint, [str(folder / "model.safetensors")], states)
    with pytest.raises(ModelError, match=r"loaded other files \(x\.safetensors\)"):
        check_loaded(checkpoint, [str(folder / "x.safetensors")], states)
    os.utime(folder / "model.safetensors", ns=(0, 0))
    with pytest.raises(ModelError, match="changed while it was loaded"):
        check_loaded(checkpoint, [str(folder / "model.safetensors")], states)


@pytest.mark.parametrize("name", ["\ud800", "a\x00b"])
def test_a_name_that_no_file_can_have_is_refused(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_index(folder, dict.fromkeys(tensors, name))
    refused(folder, "names no file")
