"""What the weight files of a checkpoint hold, read from their headers alone, and what of it a loaded model uses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from quantaudit.errors import ModelError
from quantaudit.model.loading.checkpoint import Checkpoint
from quantaudit.provenance import Doubt

_CODES = re.compile(r"[IU](4|8|16|32)|F[468]_\w+")
"""Dtypes of safetensors that quantized weights are stored in, packed or one by one."""
_FLOAT8 = re.compile(r"F8_E[45]M\w+")
_NO_WEIGHT = re.compile(r"(attn|attention)\.bias$|(index|indices|ids|tid2eid|mask|tracked)$")
"""Integers that are no weights: causal masks of old checkpoints, tables of indices."""
_PARAMETER = re.compile(
    r"(^|\.)(weight_(scale(_inv|_2)?|zero_point|packed|global_scale|g_idx|bitmask)|(gate_up|down|up|gate)_proj_"
    r"(scale(_inv)?|scales|blocks|packed|zero_point)|input_(scale|zero_point|global_scale)|output_scale|qweight|qzeros"
    r"|g_idx|SCB|absmax|quant_map|quant_state\..+|weights?\.(_data|_scale|absmax|quant_map|quant_state.*)|\w+_blocks"
    r"|codebooks?)$"
)
"""Names of the tensors that only quantized storage has: scales, zero points, packed codes."""

_HARMLESS = {
    re.compile(r"(^|\.)(original_)?inv_freq$|rotary_emb\.(cos|sin)_cached$"): "caches of rotary positions",
    re.compile(r"(^|\.)position_ids$|relative_position_index$"): "tables of positions",
    re.compile(r"(attn|attention)\.(masked_)?bias$"): "causal masks",
    re.compile(r"num_batches_tracked$"): "counters of batches",
    re.compile(r"(^|\.)(mtp|mtp_\w+|nextn\w*)\."): "heads for several next tokens (MTP)",
}
"""What may be stored and unused without harm, by name."""
_MTP_PARTS = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)(\.|$)")
"""What a layer that predicts the token after the next one has, and no other."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as its file's header describes it. dtype: in safetensors' words, such as BF16 or F8_E4M3."""

    dtype: str
    shape: tuple[int, ...]


def stored_tensors(checkpoint: Checkpoint) -> dict[str, Stored]:
    """Every tensor of a checkpoint's safetensors files by name; nothing for a GGUF. Only headers are read."""
    if checkpoint.gguf:
        return {}
    stored = {}
    for path in checkpoint.weights:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_slice(name)
                stored[name] = Stored(str(tensor.get_dtype()), tuple(tensor.get_shape()))
    return stored


def check_quantized_storage(checkpoint: Checkpoint, stored: Mapping[str, Stored]) -> None:
    """That weights are stored as config.json says: plain, or quantized by a method that loading undoes.

    Raises ModelError where codes would be read as weights, or where there is nothing to dequantize.
    """
    codes = quantized_names(stored)
    if checkpoint.quantization is None and codes:
        name = codes[0]
        raise ModelError(
            f"weights are stored quantized ({_dtype_in_words(stored[name].dtype)} in {name}), and config.json does not "
            "say how: read as they are, they would be garbage",
            where=str(checkpoint.folder),
            hint="audit the unquantized checkpoint that it was made from",
        )
    if checkpoint.quantization and stored and not codes:
        dtype, _ = Counter(tensor.dtype for tensor in stored.values()).most_common(1)[0]
        raise ModelError(
            f"config.json says that weights are quantized ({checkpoint.quantization}), and none are: "
            f"they are stored as {_dtype_in_words(dtype)}",
            where=str(checkpoint.folder),
            hint="remove quantization_config from config.json if these are the whole weights; else give their files",
        )
    without = [
        name
        for name, tensor in stored.items()
        if checkpoint.quantization and _FLOAT8.fullmatch(tensor.dtype)
        # Scales of NVFP4 are FP8 numbers themselves.
        if not _PARAMETER.search(name) and not _has_scale(name, stored)
    ]
    if without:
        raise ModelError(
            f"{len(without)} FP8 weights have no scale, such as {without[0]}",
            where=str(checkpoint.folder),
            hint="give a complete checkpoint, or the unquantized one that it was made from",
        )


def quantized_names(stored: Mapping[str, Stored]) -> list[str]:
    """Stored tensors that only quantized storage has, codes before their scales."""
    codes = [
        name
        for name, tensor in stored.items()
        if _CODES.fullmatch(tensor.dtype) and len(tensor.shape) > 1 and not _NO_WEIGHT.search(name)
    ]
    return codes + [name for name in stored if _PARAMETER.search(name) and name not in set(codes)]


@contextmanager
def watch_unused() -> Iterator[set[str]]:
    """Names of all stored tensors that loading does not use, while this lasts, those that it would not speak of too.

    transformers leaves out of its report what a class is known to ignore: another head, or a whole tower of vision.
    """
    unused: set[str] = set()
    original: Any = PreTrainedModel._adjust_missing_and_unexpected_keys

    def adjust(self: PreTrainedModel, loading_info: Any, *args: Any, **kwargs: Any) -> Any:
        unused.update(loading_info.unexpected_keys)
        return original(self, loading_info, *args, **kwargs)

    PreTrainedModel._adjust_missing_and_unexpected_keys = adjust
    try:
        yield unused
    finally:
        PreTrainedModel._adjust_missing_and_unexpected_keys = original


@contextmanager
def watch_files() -> Iterator[set[str]]:
    """Paths of all weight files that transformers loads while this lasts, with links followed, which may not last."""
    files: set[str] = set()
    original: Any = PreTrainedModel._load_pretrained_model

    def load(model: Any, state_dict: Any, checkpoint_files: list[str] | None, *args: Any, **kwargs: Any) -> Any:
        files.update(str(Path(file).resolve()) for file in checkpoint_files or ())
        return original(model, state_dict, checkpoint_files, *args, **kwargs)

    PreTrainedModel._load_pretrained_model = staticmethod(load)
    try:
        yield files
    finally:
        PreTrainedModel._load_pretrained_model = staticmethod(original)


def judge_unused(
    checkpoint: Checkpoint, model: nn.Module, unused: Collection[str], stored: Mapping[str, Stored]
) -> tuple[list[str], list[Doubt]]:
    """Notes on stored tensors that are known to be harmless, and a doubt for each module of others.

    Raises ModelError where they show that the weights are quantized.
    """
    if scales := sorted(name for name in unused if _PARAMETER.search(name) or name.endswith(("_scale", "_zero_point"))):
        raise ModelError(
            f"{len(scales)} scales of quantized weights are stored and not used, such as {scales[0]}",
            where=str(checkpoint.folder),
            hint="audit the unquantized checkpoint that it was made from",
        )
    reasons = {name: why_harmless(name, unused, stored) for name in sorted(unused)}
    harmless = Counter(reason for reason in reasons.values() if reason)
    unknown = [name for name, reason in reasons.items() if not reason]
    notes = [f"{count} stored tensors are not used: {reason}" for reason, count in sorted(harmless.items())]
    if unknown:
        notes.append(f"{len(unknown)} stored tensors are not used, such as {unknown[0]}")
    modules = Counter(_outermost(name, model) for name in unknown)
    return notes, [
        Doubt(kind="unused", module=module, count=count, text=_unused_text(module, count))
        for module, count in sorted(modules.items())
    ]


def head_doubts(model: Any, stored: Mapping[str, Stored]) -> list[Doubt]:
    """Whether the checkpoint has an output embedding of its own where its configuration ties it to the input's.

    transformers then leaves them apart; serving engines tie them and pass by what is stored.
    """
    text = model.config.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not stored or not getattr(text, "tie_word_embeddings", False) or head is None or embedding is None:
        return []
    if getattr(head, "weight", None) is getattr(embedding, "weight", None):
        return []
    name = next((name for name, module in model.named_modules() if module is head), "lm_head")
    return [Doubt(kind="head", module=name, text="config.json ties it to the input embedding, and another is stored")]


def why_harmless(name: str, unused: Collection[str], stored: Mapping[str, Stored]) -> str | None:
    """What a stored tensor is known as that may go unused; None where it is not known."""
    for pattern, reason in _HARMLESS.items():
        if pattern.search(name):
            # A bias that an attention module itself holds has one axis; a mask has none, or those of the scores.
            shape = stored[name].shape if name in stored else ()
            return None if reason == "causal masks" and len(shape) == 1 and shape[0] > 1 else reason
    layer = re.match(r"(.*\blayers\.\d+)\.", name)
    if layer and any(other.startswith(f"{layer[1]}.") and _MTP_PARTS.search(other) for other in unused):
        return "heads for several next tokens (MTP)"
    return None


def _outermost(name: str, model: nn.Module) -> str:
    """The outermost module around a stored tensor that the model does not have; the tensor where it has them all."""
    modules = {path for path, _ in model.named_modules()}
    parts = name.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return next((path for path in paths if path not in modules), name)


def _unused_text(module: str, count: int) -> str:
    return "is stored and not used" if count == 1 else f"{count} stored tensors of it are not used"


def _has_scale(name: str, stored: Mapping[str, Stored]) -> bool:
    stem = name.removesuffix("weight")
    return any(other in stored for other in (f"{name}_scale_inv", f"{name}_scale", f"{stem}scale", f"{stem}scales"))


def _dtype_in_words(dtype: str) -> str:
    """A dtype of safetensors as torch calls it: int8, uint8, float8_e4m3."""
    words = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint"}
    kind = next((letters for letters in ("BF", "F", "I", "U") if dtype.startswith(letters)), "")
    return words.get(kind, "") + dtype.removeprefix(kind).lower()
