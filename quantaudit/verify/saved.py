"""A checkpoint that llm-compressor saved quantized, loaded as it runs, with all that is to be doubted about it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantaudit.errors import ModelError
from quantaudit.model.loading.checkpoint import Checkpoint, check_loaded, file_states, without_adapter
from quantaudit.model.loading.classes import class_doubts
from quantaudit.model.loading.info import describe
from quantaudit.model.loading.load import LoadedModel, explained, load_config, quiet, tokenizer_of
from quantaudit.model.loading.stored_tensors import (
    check_quantized_storage,
    head_doubts,
    judge_unused,
    stored_tensors,
    watch_files,
    watch_unused,
)
from quantaudit.model.loading.weights import weight_doubts
from quantaudit.verify.oneshot import load_saved

NOTE = "weights are dequantized while it is loaded, and inputs of Linears are quantized as the checkpoint says"


def load_quantized(
    checkpoint: Checkpoint, *, device: torch.device, dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """A compressed-tensors checkpoint, as `verify` scores what it saved. dtype: `auto` is the checkpoint's own.

    Raises ModelError where anything is missing, broken or would stay unread.
    """
    quiet()
    stored = stored_tensors(checkpoint)
    check_quantized_storage(checkpoint, stored)
    load_config(checkpoint, trust_remote_code=trust_remote_code)
    tokenizer = tokenizer_of(checkpoint, trust_remote_code=trust_remote_code)
    with (
        explained(checkpoint, "weights", trust_remote_code=trust_remote_code),
        without_adapter(checkpoint) as folder,
        watch_unused() as unused,
        watch_files() as loaded,
    ):
        before = file_states(checkpoint)
        model: Any = _loaded(folder, device, dtype=dtype, trust_remote_code=trust_remote_code)
    check_loaded(checkpoint, loaded, before)
    notes, doubts = judge_unused(checkpoint, model, _unread(unused, model), stored)
    doubts += [*class_doubts(model.config, model), *head_doubts(model, stored), *weight_doubts(model)]
    info = describe(checkpoint, model, tokenizer, [NOTE, *notes], doubts)
    return LoadedModel(model=model, tokenizer=tokenizer, info=info)


def _loaded(folder: Path, device: torch.device, *, dtype: str, trust_remote_code: bool) -> nn.Module:
    try:
        return load_saved(folder, device, dtype=dtype, trust_remote_code=trust_remote_code)
    except ModelError as error:
        hint = "see what is wrong with `quantaudit conform`; engines may load what transformers does not"
        raise ModelError(error.message, where=error.where, hint=hint) from error


def _unread(unused: Collection[str], model: nn.Module) -> list[str]:
    """Stored tensors that nothing has read: matrices of rotations are attached once the rest is loaded."""
    return sorted(set(unused) - model.state_dict().keys())
