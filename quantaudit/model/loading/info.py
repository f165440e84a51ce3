"""What a card says about a loaded model: its configuration, its files, its modules, and what is to be doubted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from quantaudit.errors import ModelError
from quantaudit.model.loading.checkpoint import Checkpoint, fingerprint
from quantaudit.model.loading.classes import HINT
from quantaudit.model.loading.input_digests import digests_of_files
from quantaudit.model.structure import context_length, decoder_layers, hidden_size
from quantaudit.model.weight_sketch import sketches
from quantaudit.provenance import Doubt, ModelInfo, ModuleInfo, WeightSketch


def describe(
    checkpoint: Checkpoint,
    model: nn.Module,
    tokenizer: Any,
    notes: list[str],
    doubts: Sequence[Doubt] = (),
    *,
    split_wrongly: Sequence[str] = (),
    weights: Mapping[str, WeightSketch] | None = None,
) -> ModelInfo:
    """Provenance of a loaded model. weights: of its parameters that are not in memory.

    Raises ModelError where it has no vocabulary.
    """
    files, digest = fingerprint(checkpoint)
    info = model_info(
        model,
        notes,
        spec=checkpoint.spec,
        name=checkpoint.name,
        revision=checkpoint.revision,
        files=files,
        digest=digest,
    )
    inputs = digests_of_files(checkpoint, model, tokenizer)
    every = dict(sorted({**(info.weights or {}), **(weights or {})}.items()))
    return info.model_copy(
        update={"inputs": inputs, "weights": every, "doubts": list(doubts), "split_wrongly": list(split_wrongly)}
    )


def model_info(
    model: nn.Module,
    notes: list[str],
    *,
    spec: str,
    name: str,
    revision: str | None,
    files: dict[str, str],
    digest: str,
) -> ModelInfo:
    """Provenance of a model, wherever it came from. digest: identifies its weights.

    Raises ModelError where it has no vocabulary.
    """
    config: Any = model.config
    text = config.get_text_config()
    if getattr(text, "vocab_size", None) is None:
        raise ModelError(
            f"{type(model).__name__} is no language model: its configuration has no vocabulary", where=name, hint=HINT
        )
    return ModelInfo(
        spec=spec,
        # A file called `.gguf`, or the root of a disk, has no name.
        name=next(text for text in (name, spec, type(model).__name__) if text.strip()),
        architecture=type(model).__name__,
        model_type=config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=_layers(model, text),
        hidden_size=hidden_size(model),
        vocab_size=text.vocab_size,
        context_length=context_length(text),
        revision=revision,
        files=files,
        fingerprint=digest,
        config_sha256=_config_hash(config),
        notes=notes,
        modules=[module_info(name, module) for name, module in model.named_modules() if name],
        weights=sketches(model),
    )


def _layers(model: nn.Module, text: Any) -> int:
    """Decoder layers: by the configuration, or counted where it has a list of parts instead (BLT)."""
    named = getattr(text, "num_hidden_layers", None)
    return len(decoder_layers(model)[1]) if named is None else int(named)


def module_info(name: str, module: nn.Module) -> ModuleInfo:
    """A module as a card keeps it, enough to rebuild a shell of it."""
    weight = getattr(module, "weight", None)
    return ModuleInfo(
        name=name,
        classes=[cls.__name__ for cls in type(module).__mro__[: type(module).__mro__.index(nn.Module) + 1]],
        weight_shape=list(weight.shape) if isinstance(weight, torch.Tensor) else None,
    )


def _config_hash(config: PretrainedConfig) -> str:
    settings = config.to_dict()
    # Where the files lie and which transformers read them is not part of the model.
    for key in ("_name_or_path", "transformers_version", "quantization_config"):
        settings.pop(key, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
