"""Which files of a folder hold a model's weights: exactly those that transformers loads, each by a name within it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

from quantaudit.common.reading.json_document import parse_json
from quantaudit.common.reading.regular_files import CARD_BYTES, read_text
from quantaudit.errors import ModelError

AGAIN = "download the checkpoint again"
CUT_SHORT = "GGUF file is cut short, or damaged"
COMPLETE = "give a complete checkpoint"
ADAPTER = "adapter_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER_WEIGHTS = ("adapter_model*.safetensors", "adapter_model*.bin")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OUTSIDE = "put the shards into the folder of the model, and name them in the index by their paths within it"


def adapter_file(folder: Path) -> str | None:
    """The first file of a PEFT adapter in a folder, its configuration before its weights; None without any."""
    weights = sorted(path.name for pattern in _ADAPTER_WEIGHTS for path in folder.glob(pattern))
    return next(iter([*([ADAPTER] if (folder / ADAPTER).is_file() else []), *weights]), None)


def weight_files(folder: Path, settings: Mapping[str, Any]) -> tuple[Path, ...]:
    """The weight files that transformers will load, each with an intact header, in the order of their paths.

    settings: of config.json, where `transformers_weights` names another file, or another index, than the usual ones.
    Raises ModelError.
    """
    files = named_files(folder, settings)
    for file in files:
        _check_header(file)
    return files


def named_files(folder: Path, settings: Mapping[str, Any]) -> tuple[Path, ...]:
    """The same, whether they are there or not. Raises ModelError."""
    files = _named_in_config(folder, settings) or _usual(folder)
    if not files:
        raise _no_weights(folder)
    return files


def _named_in_config(folder: Path, settings: Mapping[str, Any]) -> tuple[Path, ...]:
    """What a configuration's `transformers_weights` names, which is loaded first; empty where it is not set."""
    name = settings.get("transformers_weights")
    if name is None:
        return ()
    config = folder / "config.json"
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ModelError(
            f"transformers_weights is {str(name)[:60]!r}, and no safetensors file or index of them",
            where=str(config),
            hint="remove it, or name a file within the folder",
        )
    path = _within(folder, name, source=config)
    return _indexed(folder, path) if path.name.endswith(".index.json") else (path,)


def _usual(folder: Path) -> tuple[Path, ...]:
    """model.safetensors, or what its index names; empty without either."""
    single, index = folder / SINGLE, folder / INDEX
    files = (single,) if single.is_file() else ()
    if not index.is_file():
        return files
    indexed = _indexed(folder, index)
    if files and indexed != files:
        names = ", ".join(f"{path.name}{'' if path.is_file() else ', which is missing'}" for path in indexed[:3])
        raise ModelError(
            f"the folder has model.safetensors and an index of other files ({names}): loaders differ in what they read",
            where=str(folder),
            hint="remove what does not belong to the model",
        )
    return indexed


def _indexed(folder: Path, index: Path) -> tuple[Path, ...]:
    """The files that an index names, each once."""
    try:
        names = set(parse_json(read_text(index, CARD_BYTES), unique=True)["weight_map"].values())
        if not names or not all(isinstance(name, str) and name for name in names):
            raise TypeError("weight_map does not name a file for every tensor")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"weight index cannot be read: {error}", where=str(index), hint=AGAIN) from error
    return tuple(sorted({_within(folder, name, source=index) for name in names}))


def _within(folder: Path, name: str, *, source: Path) -> Path:
    """A file of the folder by the name that another file gives it, which may be a link to anywhere. source: that file.

    Shards are linked where disks are shared, and by the Hub's cache; who makes the folder makes its links. Raises
    ModelError where the name itself leads out of the folder, or names no file.
    """
    # Written on Windows or to fool us: a backslash and a drive lead outside there.
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts:
        raise ModelError(f"names a file outside the folder: {name[:100]}", where=str(source), hint=_OUTSIDE)
    path = folder / PurePosixPath(name)
    try:
        path.stat()
    except FileNotFoundError:
        pass  # said as missing, with its own name
    except (OSError, ValueError) as error:  # characters that no file system takes, links in a circle
        raise ModelError(f"names no file: {name[:100]!a}", where=str(source), hint=AGAIN) from error
    return path


def _check_header(file: Path) -> None:
    if not file.is_file():
        raise ModelError("weight file is missing", where=str(file), hint=AGAIN)
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weight file is broken or truncated: {error}", where=str(file), hint=AGAIN) from error


def _no_weights(folder: Path) -> ModelError:
    if any(file for pattern in _PICKLES for file in folder.glob(pattern)):
        return ModelError(
            "checkpoint is pickled; loading it could run code",
            where=str(folder),
            hint="convert it: model.save_pretrained(folder) on a machine that trusts it writes safetensors",
        )
    return ModelError(
        "folder has no weights (model.safetensors, or the index of its parts)",
        where=str(folder),
        hint="merge the adapter into its base model first" if adapter_file(folder) else COMPLETE,
    )
