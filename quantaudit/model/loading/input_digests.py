"""Digests of what a model is loaded from in addition to its weights: configuration, tokenizer, template, generation."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantaudit.common.reading.json_document import read_json
from quantaudit.common.reading.regular_files import CONFIG_BYTES
from quantaudit.errors import ModelError
from quantaudit.model.configuration import completed, flat
from quantaudit.model.loading.checkpoint import Checkpoint, sha256_of
from quantaudit.provenance import InputDigests

_NOT_THE_MODEL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "transformers_weights"}
"""Settings of a config.json that are no part of the model: where it lay, who wrote it, in which dtype, in which files.

The dtype that was loaded and the files that were read are recorded by themselves.
"""
_REMOTE = "transformers_modules"
"""The package that transformers imports a checkpoint's own code into, below a package for each version of it."""
_LEGACY_TOKEN_FILES = ("special_tokens_map.json", "added_tokens.json")
_PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def digests_of_files(checkpoint: Checkpoint, model: Any, tokenizer: Any) -> InputDigests:
    """Of a checkpoint that has been loaded: by its files, so that another version of their readers changes nothing.

    A GGUF holds configuration and tokenizer too: its tokenizer is null, its configuration as it was read.
    """
    if checkpoint.gguf:
        return digests_in_memory(model.config, tokenizer).model_copy(update={"tokenizer": None, "generation": None})
    folder = checkpoint.folder
    files = _tokenizer_files(folder, tokenizer)
    generation = folder / "generation_config.json"
    return _digests(
        _json(folder / "config.json"),
        tokenizer=_digest(files),
        tokenizer_files=files,
        chat_template=template_digest(tokenizer),
        generation=_json_digest(generation, leave_out=_NOT_THE_MODEL) if generation.is_file() else None,
        code=_code(model, model.config, tokenizer),
        generation_settings=_generation(getattr(model, "generation_config", None)),
        tokenizer_parts=tokenizer_parts(tokenizer),
    )


def digests_in_memory(config: Any, tokenizer: Any, generation: Any = None) -> InputDigests:
    """Of objects of transformers. tokenizer, generation: None where there is none."""
    return _digests(
        config.to_dict(),
        tokenizer=None if tokenizer is None else tokenizer_digest(tokenizer),
        tokenizer_files={},
        chat_template=template_digest(tokenizer),
        generation=None if generation is None else _digest(_without(generation.to_dict(), _NOT_THE_MODEL)),
        generation_settings=_generation(generation),
        tokenizer_parts=None if tokenizer is None else tokenizer_parts(tokenizer),
    )


def processor_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of the files that a processor of images is read from."""
    present = [name for name in _PROCESSOR_FILES if (checkpoint.folder / name).is_file()]
    return _digest({name: sha256_of(checkpoint.folder / name) for name in present})


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does, whatever it was read from."""
    return _digest(_tokenizer_contents(tokenizer))


def tokenizer_parts(tokenizer: Any) -> dict[str, str]:
    """Part of a tokenizer → SHA-256 of what it does, whichever files and spellings it was read from."""
    rust = getattr(tokenizer, "backend_tokenizer", None)
    if rust is None:
        return {"model": _digest(sorted(tokenizer.get_vocab().items()))}
    parts = json.loads(rust.to_str())
    # How a batch is cut and padded is set by each call; the version is of the file.
    return {name: _digest(part) for name, part in parts.items() if name not in ("version", "truncation", "padding")}


def template_digest(tokenizer: Any) -> str | None:
    """SHA-256 of a tokenizer's chat template, or of all of them by their names; None without one."""
    template = getattr(tokenizer, "chat_template", None)
    return None if not template else _digest(template)


def generation_settings(generation: Any) -> dict[str, Any]:
    """What a generation config asks for, where it asks for anything; not what is returned, nor how it is cached."""
    return {
        name: value
        for name, value in flat(generation.to_dict()).items()
        if not name.startswith(("output_", "return_")) and name != "cache_implementation"
    }


def _generation(generation: Any) -> dict[str, Any] | None:
    return None if generation is None else generation_settings(generation)


def _code(*loaded: Any) -> str | None:
    """SHA-256 of the Python files that transformers has run for these objects; None where all are its own classes."""
    modules = (type(one).__module__ for one in loaded)
    packages = {name.rpartition(".")[0] for name in modules if name.startswith(f"{_REMOTE}.")}
    files = {
        name.rpartition(".")[2]: sha256_of(Path(module.__file__))
        for name, module in sorted(sys.modules.items())
        if name.rpartition(".")[0] in packages and module.__file__ is not None
    }
    return _digest(files) if files else None


def _digests(config: Mapping[str, Any], **parts: Any) -> InputDigests:
    settings = {path: _digest(value) for path, value in _settings(_without(config, _NOT_THE_MODEL))}
    return InputDigests(
        config=_digest(settings),
        settings={path: digest[:16] for path, digest in settings.items()},
        configuration=_completed(config),
        **parts,
    )


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return completed(config)
    except ModelError:  # a checkpoint's own code has read what transformers would refuse
        return flat(config)


def _settings(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration, those of its parts by `part.setting`, in the order of their paths."""
    for key in sorted(value):
        part = value[key]
        if isinstance(part, Mapping) and part:
            yield from _settings(_without(part, _NOT_THE_MODEL), f"{above}{key}.")
        else:
            yield f"{above}{key}", part


def _tokenizer_files(folder: Path, tokenizer: Any) -> dict[str, str]:
    """File that the tokenizer was read from → SHA-256; of tokenizer_config.json without the chat template in it."""
    vocabulary = dict.fromkeys(name for name in type(tokenizer).vocab_files_names.values() if name)
    if tokenizer.is_fast and (folder / "tokenizer.json").is_file():
        vocabulary = {"tokenizer.json": None}  # it holds all that the others do, which are not read then
    config = folder / "tokenizer_config.json"
    settings = _json(config) if config.is_file() else {}
    legacy = () if "added_tokens_decoder" in settings else _LEGACY_TOKEN_FILES
    files = {name: sha256_of(folder / name) for name in (*vocabulary, *legacy) if (folder / name).is_file()}
    if config.is_file():
        files[config.name] = _json_digest(config, leave_out={"chat_template", "name_or_path"})
    return dict(sorted(files.items()))


def _tokenizer_contents(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer does, where it is not known what it was read from."""
    rust = getattr(tokenizer, "backend_tokenizer", None)
    return {
        "class": type(tokenizer).__name__,
        "content": rust.to_str() if rust is not None else sorted(tokenizer.get_vocab().items()),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "adds": [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")],
    }


def _json(path: Path) -> dict[str, Any]:
    """A file of JSON that a loader has read; nothing where it holds no object."""
    value = read_json(path, CONFIG_BYTES)
    return value if isinstance(value, dict) else {}


def _json_digest(path: Path, leave_out: set[str]) -> str:
    """Of a file of JSON without some of its settings; of its bytes where it is none, which loaders pass by."""
    try:
        return _digest(_without(_json(path), leave_out))
    except ValueError:
        return sha256_of(path)


def _without(settings: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {str(key): value for key, value in settings.items() if key not in names}


def _digest(value: Any) -> str:
    """SHA-256 of a value as JSON; equal ones have equal digests, in whichever order their keys are."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
