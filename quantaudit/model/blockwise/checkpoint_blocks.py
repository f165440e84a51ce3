"""Decoder blocks of a checkpoint, read one at a time by transformers' own loader, and the rest of it without them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)

from quantaudit.errors import ModelError
from quantaudit.model.blockwise.block_weights import stored_tensors_of
from quantaudit.model.forward.capture import calls
from quantaudit.model.loading.checkpoint import Checkpoint, FileStates, file_states
from quantaudit.model.structure import decoder_layers

_TRIAL = 4
"""Tokens of the pass that shows how often blocks are called."""


@dataclass(frozen=True, slots=True)
class StoredName:
    """A tensor as a checkpoint holds it."""

    file: Path
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointBlocks:
    """What it takes to read a decoder block. blocks: their paths, in order.

    template: the model on the meta device, as transformers builds it before it loads. config: how it loads, quantized
    storage and renamed tensors included. sources: what the checkpoint holds of each block. states: of its files.
    """

    checkpoint: Checkpoint
    blocks: tuple[str, ...]
    template: Any
    config: Any
    sources: Mapping[int, Sequence[StoredName]]
    states: FileStates

    @property
    def converts(self) -> bool:
        """Whether tensors are stored in another form than the model has them: quantized, stacked, or split."""
        mapping = self.config.weight_mapping or []
        return bool(self.checkpoint.quantization) or any(isinstance(entry, WeightConverter) for entry in mapping)

    def read(self, index: int, device: torch.device) -> nn.Module:
        """A block of its own, as the whole model would have it once it is loaded. Raises ModelError."""
        path = self.blocks[index]
        untouched = copy.deepcopy(self.template.get_submodule(path))
        with ExitStack() as stack:
            files: dict[Path, Any] = {}
            for source in self.sources[index]:
                if source.file not in files:
                    files[source.file] = stack.enter_context(safe_open(source.file, framework="pt"))
            state = {source.name: files[source.file].get_slice(source.name) for source in self.sources[index]}
            config = replace(self.config, device_map={"": str(device)})
            report, _ = convert_and_load_state_dict_in_model(self.template, state, config)
        block: nn.Module = self.template.get_submodule(path)
        self.template.set_submodule(path, untouched)
        missing = [name for name, tensor in stored_tensors_of(block) if tensor.is_meta]
        if missing or report.conversion_errors or file_states(self.checkpoint) != self.states:
            raise ModelError(
                f"{path} cannot be read again: {missing[0] if missing else 'its files changed'}",
                where=str(self.checkpoint.folder),
                hint="run the command again",
            )
        return block


@dataclass(slots=True)
class LeftOut:
    """What was left out of a model that was loaded without its blocks. why_not: why nothing was."""

    blocks: CheckpointBlocks | None = None
    why_not: str | None = field(default=None)


@contextmanager
def leave_blocks_out(checkpoint: Checkpoint, *, wanted: bool) -> Iterator[LeftOut]:
    """While this lasts, transformers leaves decoder blocks on the meta device, and reports on them as if loaded.

    A model that cannot run block by block is loaded whole, and so is any where this is not wanted.
    """
    left = LeftOut(why_not="a GGUF is dequantized as one" if wanted and checkpoint.gguf else None)
    if not wanted or checkpoint.gguf:
        yield left
        return
    original: Any = PreTrainedModel._load_pretrained_model

    def load(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any) -> Any:
        path, layers = decoder_layers(model)
        blocks = tuple(f"{path}.{index}" for index in range(len(layers)))
        left.why_not = why_whole(model, blocks)
        if left.why_not is None:
            left.blocks = CheckpointBlocks(
                checkpoint=checkpoint,
                blocks=blocks,
                template=copy.deepcopy(model),
                config=load_config,
                sources=_sources(checkpoint, model, blocks, load_config.weight_mapping or []),
                states=file_states(checkpoint),
            )
            load_config = replace(load_config, device_map={"": "cpu"} | dict.fromkeys(blocks, "meta"))
        return original(model, state_dict, checkpoint_files, load_config, *args, **kwargs)

    PreTrainedModel._load_pretrained_model = staticmethod(load)
    try:
        yield left
    finally:
        PreTrainedModel._load_pretrained_model = staticmethod(original)


def why_whole(model: Any, blocks: Sequence[str]) -> str | None:
    """Why a model cannot run block by block; None where it can. Its structure is enough."""
    inside = tuple(f"{path}." for path in blocks)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    if shared := [name for pair in tied.items() for name in pair if name.startswith(inside)]:
        return f"{shared[0]} is tied to another weight"
    owners: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner = next((path for path in inside if name.startswith(path)), "")
        if owners.setdefault(id(tensor), owner) != owner:
            return f"{name} is used by several blocks"
    if next(name for name, _ in model.named_parameters()).startswith(inside):
        return "its first weights are those of a decoder block"
    return "it calls a block several times" if _calls_twice(model, blocks) else None


def _calls_twice(model: Any, blocks: Sequence[str]) -> bool:
    """Whether a model calls a block more than once in a forward pass, as far as it runs without values."""
    if not next(model.parameters()).is_meta:
        return False
    with torch.device("meta"):
        given = {"input_ids": torch.zeros(1, _TRIAL, dtype=torch.int64), "use_cache": False}
        mask = torch.zeros(1, 1, _TRIAL, _TRIAL, dtype=torch.bool)  # as it is applied: others' values are looked at
    with calls(model, blocks) as counted, torch.no_grad(), suppress(Exception):  # such as indices of experts
        model(**given, attention_mask=mask)
    return any(count > 1 for count in counted.values())


def _sources(
    checkpoint: Checkpoint, model: Any, blocks: Sequence[str], mapping: Sequence[Any]
) -> dict[int, list[StoredName]]:
    """Stored tensors by the block that they end up in, under the names that transformers' loader gives them."""
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    expected, prefix = model.state_dict(), model.base_model_prefix
    parent = blocks[0].rpartition(".")[0] + "."
    sources: dict[int, list[StoredName]] = {index: [] for index in range(len(blocks))}
    for path in checkpoint.weights:
        with safe_open(path, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118  (not a mapping)
                name, _ = rename_source_key(stored, renamings, converters, prefix, expected)
                if name not in expected and stored in expected:
                    name, _ = rename_source_key(stored, [], [], prefix, expected)
                number = name.removeprefix(parent).partition(".")[0]
                if name in expected and name.startswith(parent) and number.isdigit():
                    sources[int(number)].append(StoredName(path, stored))
    return sources
