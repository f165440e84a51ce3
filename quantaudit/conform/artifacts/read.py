"""Which toolkit wrote an artifact, told from its files, and its scales."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantaudit.conform.artifacts import compressed, openvino, quanto
from quantaudit.conform.artifacts.records import Artifact
from quantaudit.conform.artifacts.tensors import read_json
from quantaudit.errors import ModelError
from quantaudit.provenance import ModuleInfo

_HINT = "give a folder that llm-compressor or optimum-quanto saved, or one with an OpenVINO model (.xml and .bin) in it"


def read_artifact(path: Path, modules: Sequence[ModuleInfo]) -> Artifact:
    """Read the scales, and only those. modules: of the model that the card is about.

    Raises ModelError where it is no quantized artifact, or one that cannot be read.
    """
    if path.suffix == ".xml" and path.is_file():
        return openvino.read_openvino(path, modules)
    if not path.is_dir():
        raise ModelError("no such artifact", where=str(path), hint=_HINT)
    if quanto.find_map(path) is not None:
        return quanto.read_quanto(path)
    networks = [found for found in sorted(path.glob("*.xml")) if "tokenizer" not in found.name]
    if networks:
        return openvino.read_openvino(networks[0], modules)
    return _checkpoint(path, modules)


def _checkpoint(folder: Path, modules: Sequence[ModuleInfo]) -> Artifact:
    if not (folder / "config.json").is_file():
        raise ModelError("holds no config.json", where=str(folder), hint=_HINT)
    config = read_json(folder / "config.json")
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        raise ModelError("is not quantized: its config.json has no quantization_config", where=str(folder), hint=_HINT)
    method = settings.get("quant_method")
    if method != compressed.METHOD:
        raise ModelError(f"is quantized by {method!r}, which conform does not read", where=str(folder), hint=_HINT)
    return compressed.read_compressed(folder, settings, modules)
