"""Quantized checkpoints that are not audited, by name, with what to do about each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantaudit.conform.artifacts.tensors import read_json
from quantaudit.errors import ModelError

MODELOPT_FILE = "hf_quant_config.json"
_REMAKE = "quantize the unquantized model with llm-compressor, whose artifacts are audited"
METHODS: dict[str, tuple[str, str]] = {
    "modelopt": ("ModelOpt", "export it for compressed-tensors, or " + _REMAKE),
    "modelopt_fp4": ("ModelOpt", "export it for compressed-tensors, or " + _REMAKE),
    "gptq": ("GPTQ (GPTQModel, AutoGPTQ)", "use llm-compressor's GPTQModifier, whose artifacts are audited"),
    "awq": ("AWQ (AutoAWQ)", "use llm-compressor's AWQModifier, whose artifacts are audited"),
    "bitsandbytes": ("bitsandbytes", "it has no static ranges: its weights alone are quantized; " + _REMAKE),
    "torchao": ("torchao", _REMAKE),
    "quanto": (
        "quanto inside transformers",
        "save it with optimum-quanto's QuantizedModelForCausalLM, which writes quanto_qmap.json, or " + _REMAKE,
    ),
    "auto-round": ("AutoRound", "save it with `--format llm_compressor`, which is audited"),
    "intel/auto-round": ("AutoRound", "save it with `--format llm_compressor`, which is audited"),
    "auto_round": ("AutoRound", "save it with `--format llm_compressor`, which is audited"),
    "fp8": (
        "fine-grained FP8 of transformers",
        "its inputs get their scales as the model runs; convert it with llm-compressor's FP8_BLOCK to have it audited",
    ),
    "fbgemm_fp8": ("FBGEMM FP8", _REMAKE),
    "hqq": ("HQQ", "its weights alone are quantized; " + _REMAKE),
    "mxfp4": ("MXFP4 of transformers (gpt-oss)", "convert it with llm-compressor's MXFP4 to have it audited"),
    "eetq": ("EETQ", _REMAKE),
    "aqlm": ("AQLM", _REMAKE),
    "quip": ("QuIP#", _REMAKE),
    "vptq": ("VPTQ", _REMAKE),
    "spqr": ("SpQR", _REMAKE),
    "higgs": ("HIGGS", _REMAKE),
    "bitnet": ("BitNet", "it was trained so; there is no unquantized model to hold it against"),
    "quark": ("AMD Quark", _REMAKE),
    "ipex": ("IPEX", _REMAKE),
    "exl2": ("ExLlamaV2", _REMAKE),
    "exl3": ("ExLlamaV3", _REMAKE),
}
"""`quant_method` → whose it is, and what to do."""


def refuse_unknown(folder: Path, method: str) -> ModelError:
    """The error for a method that is not read."""
    whose, remedy = METHODS.get(method.lower(), ("", _REMAKE))
    named = f"{method!r}, the format of {whose}," if whose else f"{method!r},"
    return ModelError(f"is quantized by {named} which conform does not read", where=str(folder), hint=remedy)


def refuse_unnamed(folder: Path, settings: Mapping[str, Any]) -> ModelError:
    """The error for a quantization_config that names no method."""
    algorithm, producer = settings.get("quant_algo"), settings.get("producer")
    maker = producer.get("name") if isinstance(producer, Mapping) else None
    if algorithm is not None or maker == "modelopt":
        detail = f" with the algorithm {algorithm}" if algorithm else ""
        return ModelError(
            f"is quantized by ModelOpt{detail}, which conform does not read",
            where=str(folder),
            hint=METHODS["modelopt"][1],
        )
    if "bits" in settings and "group_size" in settings:
        return ModelError(
            "is quantized in the layout of GPTQ or AWQ (quantization_config names no quant_method), which conform does "
            "not read",
            where=str(folder),
            hint=METHODS["gptq"][1],
        )
    return ModelError(
        "has a quantization_config that names no quant_method", where=str(folder / "config.json"), hint=_REMAKE
    )


def refuse_sparse(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ModelError where weights are stored sparse, or in a format that is no longer written."""
    sparsity = settings.get("sparsity_config")
    kind = sparsity.get("format") if isinstance(sparsity, Mapping) else None
    if kind not in (None, "", "dense"):
        raise ModelError(
            f"its weights are stored sparse ({kind}), which conform does not read, nor do current compressed-tensors",
            where=str(folder),
            hint="save it again without a sparse format (save_pretrained with disable_sparse_compression=True)",
        )
    groups = settings.get("config_groups")
    formats = (
        [group.get("format") for group in groups.values() if isinstance(group, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    if "marlin-24" in [settings.get("format"), *formats]:
        raise ModelError(
            "its weights are stored sparse (marlin-24), which compressed-tensors no longer reads",
            where=str(folder),
            hint="quantize the model again without 2:4 sparsity",
        )


def refuse_unquantized(folder: Path) -> ModelError:
    """The error for a config.json without quantization: a file next to it may say whose the checkpoint is."""
    for name, method in (
        (MODELOPT_FILE, "modelopt"),
        ("quantize_config.json", "gptq"),
        ("quant_config.json", "awq"),
        ("quantization_config.json", "auto-round"),
    ):
        if (folder / name).is_file():
            data = read_json(folder / name)
            inside = data.get("quantization", data) if isinstance(data, dict) else {}
            algorithm = inside.get("quant_algo") if isinstance(inside, Mapping) else None
            whose, remedy = METHODS[method]
            detail = f" with the algorithm {algorithm}" if algorithm else ""
            return ModelError(
                f"is quantized by {whose}{detail}, as {name} says, which conform does not read",
                where=str(folder),
                hint=remedy,
            )
    return ModelError(
        "is not quantized: its config.json has no quantization_config",
        where=str(folder),
        hint="give a folder that llm-compressor or optimum-quanto saved, or one with an OpenVINO model (.xml and .bin) "
        "in it",
    )
