"""Which library wrote an artifact, by its files, and its contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantaudit.common.outputs.file_set import finish
from quantaudit.conform.artifacts import compressed, openvino, quanto
from quantaudit.conform.artifacts.records import Artifact
from quantaudit.conform.artifacts.refusals import (
    MODELOPT_FILE,
    refuse_sparse,
    refuse_unknown,
    refuse_unnamed,
    refuse_unquantized,
)
from quantaudit.conform.artifacts.side_files import read_side_files
from quantaudit.conform.artifacts.tensors import read_json
from quantaudit.conform.configuration import METHOD
from quantaudit.errors import ModelError
from quantaudit.model.declared import check_declared, check_files
from quantaudit.provenance import ModuleInfo

_HINT = "give a folder that llm-compressor or optimum-quanto saved, or one with an OpenVINO model (.xml and .bin) in it"
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_OLD_KEY = "compression_config"


def read_artifact(path: Path, modules: Sequence[ModuleInfo]) -> Artifact:
    """Read what an artifact holds. modules: of the model that the card is about.

    Raises ModelError where it is no quantized artifact, or one that cannot be read.
    """
    if path.suffix == ".xml" and path.is_file():
        return openvino.read_openvino(path, modules)
    if path.suffix == ".gguf" and path.is_file():
        raise ModelError(
            "is a GGUF file, which conform does not read",
            where=str(path),
            hint="its weights alone are quantized: it has no static ranges to check",
        )
    if path.is_file():
        raise ModelError(
            "is a file, where the folder of the artifact is wanted",
            where=str(path),
            hint=f"give the folder, {path.parent}" if (path.parent / "config.json").is_file() else _HINT,
        )
    if path.is_dir():
        finish(path)
    else:
        raise ModelError("no such artifact", where=str(path), hint=_HINT)
    check_files(path)
    if quanto.find_map(path) is not None:
        artifact = quanto.read_quanto(path)
        config = read_json(path / "config.json") if (path / "config.json").is_file() else None
        return replace(artifact, config=config if isinstance(config, dict) else None, side=read_side_files(path))
    networks = [file for file in sorted(path.glob("*.xml")) if "tokenizer" not in file.name]
    if networks:
        return openvino.read_openvino(networks[0], modules)
    return _checkpoint(path, modules)


def _checkpoint(folder: Path, modules: Sequence[ModuleInfo]) -> Artifact:
    if not (folder / "config.json").is_file():
        raise ModelError("holds no config.json", where=str(folder), hint=_HINT)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError("is not a JSON object", where=str(folder / "config.json"), hint=_HINT)
    check_declared(config, str(folder / "config.json"))
    settings = quantization_of(config)
    if settings is None:
        raise refuse_unquantized(folder)
    method = settings.get("quant_method")
    if method is None and "config_groups" in settings:
        method = METHOD  # older compressed-tensors named it only above, or not at all
    if method is None or ((folder / MODELOPT_FILE).is_file() and method != METHOD):
        raise refuse_unnamed(folder, settings)
    if method != METHOD:
        raise refuse_unknown(folder, str(method))
    refuse_sparse(folder, settings)
    return replace(compressed.read_compressed(folder, config, settings, modules), side=read_side_files(folder))


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quantization_config of a config.json: at its top, in its text model's part, or under its older key."""
    parts = [config, *(part for key in _NESTED if isinstance(part := config.get(key), Mapping))]
    for part in parts:
        for key in ("quantization_config", _OLD_KEY):
            section = part.get(key)
            if isinstance(section, Mapping) and section:
                inner = section.get("quantization_config")
                # compressed-tensors once nested the quantization next to the sparsity.
                return {**section, **inner} if isinstance(inner, Mapping) else dict(section)
    return None
