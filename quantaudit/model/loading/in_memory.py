"""Models that somebody else has loaded: identified by the bytes of their weights, and left unmodified."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from quantaudit.errors import UsageError
from quantaudit.model.loading.classes import class_doubts
from quantaudit.model.loading.info import model_info
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.loading.weights import weight_doubts
from quantaudit.provenance import ModelInfo


def loaded_in_memory(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
    """A causal language model of transformers and its tokenizer, as if they had been loaded here.

    Experts that are stacked in one parameter stay so, and are listed as not measured: for those give the checkpoint's
    folder instead. Raises UsageError for what is no such model, is in training mode, or comes without a tokenizer.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise UsageError(
            "not a model of transformers", where=type(model).__name__, hint="give a Hub id, a folder, or a loaded model"
        )
    if tokenizer is None:
        raise UsageError("a model in memory needs its tokenizer", where="tokenizer", hint="give tokenizer=…")
    if model.training:
        raise UsageError(
            "the model is in training mode, in which dropout changes activations",
            where=type(model).__name__,
            hint="call model.eval() first",
        )
    doubts = [*class_doubts(model.config, model), *weight_doubts(model)]
    info = info_in_memory(model).model_copy(update={"doubts": doubts})
    return LoadedModel(model=model, tokenizer=tokenizer, info=info)


def info_in_memory(model: nn.Module) -> ModelInfo:
    """Provenance of a model in memory, by the bytes of its weights: never taken for that of a checkpoint on disk."""
    config: Any = model.config
    spec = str(getattr(config, "_name_or_path", "") or type(model).__name__)
    return model_info(
        model,
        [],
        spec=spec,
        name=spec.rstrip("/").rpartition("/")[2],
        revision=None,
        files={},
        digest=f"memory:{weights_digest(model)}",
    )


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        value = parameter.detach()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        if not value.is_meta:
            digest.update(value.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
