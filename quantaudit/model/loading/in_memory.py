"""Models that somebody else has loaded: identified by the bytes of their weights, and left unmodified."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantaudit.errors import UsageError
from quantaudit.model.experts import has_stacked_experts
from quantaudit.model.loading.classes import class_doubts
from quantaudit.model.loading.info import model_info
from quantaudit.model.loading.input_digests import digests_in_memory
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.loading.weights import weight_doubts
from quantaudit.provenance import ModelInfo


def loaded_in_memory(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
    """A causal language model of transformers and its tokenizer, as if they had been loaded here.

    Raises UsageError for what is no such model, or cannot be audited as it is.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        missing = "a model in memory needs its tokenizer" if tokenizer is None else "not a tokenizer of transformers"
        raise UsageError(missing, where="tokenizer", hint="give tokenizer=AutoTokenizer.from_pretrained(…)")
    if (problem := _problem(model)) is not None:
        raise UsageError(problem[0], where=type(model).__name__, hint=problem[1])
    doubts = [*class_doubts(model.config, model), *weight_doubts(model)]
    info = info_in_memory(model, tokenizer).model_copy(update={"doubts": doubts})
    return LoadedModel(model=model, tokenizer=tokenizer, info=info)


def _problem(model: Any) -> tuple[str, str] | None:
    """Why a model in memory is not audited, and what to do; None where it is."""
    if not isinstance(model, PreTrainedModel):
        return (
            "not a model of transformers",
            "give a spec, or a loaded …ForCausalLM, neither compiled nor wrapped",
        )
    if not model.can_generate() or model.config.is_encoder_decoder:
        return "not a decoder-only model with a head that predicts the next token", "give the …ForCausalLM"
    parameters = list(model.parameters())
    if any(parameter.is_meta for parameter in parameters):
        return "some weights are on the meta device and hold no values", "load the model with its weights"
    if model.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"{model.dtype} is no dtype that is audited", "convert it to bfloat16, float16 or float32"
    if model.training:
        return "the model is in training mode, in which dropout changes activations", "call model.eval() first"
    if has_stacked_experts(model):
        # A recipe quantizes Linears that oneshot makes of them; a card that has none would let it pass unseen.
        return "its experts are stacked parameters, of which `oneshot` makes Linears", "give the checkpoint's folder"
    return None


def info_in_memory(model: nn.Module, tokenizer: Any = None) -> ModelInfo:
    """Provenance of a model in memory, by the bytes of its weights: never taken for that of a checkpoint on disk."""
    config: Any = model.config
    spec = str(getattr(config, "_name_or_path", "") or type(model).__name__)
    info = model_info(
        model,
        [],
        spec=spec,
        name=spec.rstrip("/").rpartition("/")[2],
        revision=None,
        files={},
        digest=f"memory:{weights_digest(model)}",
    )
    inputs = digests_in_memory(config, tokenizer, getattr(model, "generation_config", None))
    return info.model_copy(update={"inputs": inputs})


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        value = parameter.detach()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        if not value.is_meta:
            digest.update(value.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
