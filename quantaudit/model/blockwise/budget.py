"""Which memory a model takes while it is measured: its weights, and what a batch needs while it is in a block."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantaudit.errors import UsageError
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.input_store import Room
from quantaudit.model.blockwise.memory import give_back, resident_bytes, size_option
from quantaudit.model.forward.arithmetic import arithmetic_now
from quantaudit.model.forward.float32_products import WEIGHT_BYTES
from quantaudit.model.loading.checkpoint import Checkpoint
from quantaudit.model.loading.stored_tensors import stored_tensors

PROGRAM = 1 << 28
"""Bytes that are left over for everything else: statistics of a block, buffers of libraries, a tokenizer."""
UNLIMITED = Room(device=1 << 60)
_ITEM = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2}
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_PACKED = re.compile(r"_blocks$|weight_packed$")
"""Stored tensors with two values in a byte."""


def weight_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Bytes of a checkpoint's weights once they are loaded. dtype: as asked for, `auto` for the stored one.

    Quantized storage is dequantized to 16 bits; of a GGUF, whose header is long to read, 16 bits a stored byte.
    """
    if checkpoint.gguf:
        return 2 * sum(path.stat().st_size for path in checkpoint.weights)
    asked = None if dtype == "auto" else getattr(torch, dtype).itemsize
    total = 0
    for name, tensor in stored_tensors(checkpoint).items():
        values = 1
        for length in tensor.shape:
            values *= length
        item = _ITEM.get(tensor.dtype, 4 if _PACKED.search(name) else 2)
        total += values * (asked if asked is not None and tensor.dtype.startswith(("F", "BF")) else item)
    return total


def loaded_dtype(checkpoint: Checkpoint, dtype: str) -> torch.dtype:
    """What most of a checkpoint's weights are loaded in. dtype: as for `weight_bytes`."""
    if dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    if checkpoint.gguf or checkpoint.quantization:
        return torch.bfloat16
    stored = Counter(tensor.dtype for tensor in stored_tensors(checkpoint).values())
    return _FLOATS.get(max(stored, key=stored.__getitem__, default=""), torch.bfloat16)


def fits(weights: int, budget: int, *, copies: int, wide: bool) -> bool:
    """Whether so many bytes of weights are in a budget for the whole process, in addition to what it uses now.

    copies: of them all; wide: whether their 16-bit products are computed in float32.
    """
    needed = copies * weights + (copies_bytes(weights) if wide else 0)
    return resident_bytes() + needed + PROGRAM <= budget


def activation_bytes(config: Any, rows: int, longest: int, *, eager: bool) -> int:
    """About what one batch takes while it is in a block, in bytes: of attention and of the MLP, in 16 and 32 bits."""
    text = config.get_text_config()

    def size(name: str, default: int) -> int:
        value = getattr(text, name, None)
        value = max(value, default=default) if isinstance(value, list | tuple) else value
        return int(value) if isinstance(value, int) else default

    hidden = size("hidden_size", 1024)
    # Scores, their softmax in float32, and that in 16 bits again, with a copy each.
    scores = 16 * size("num_attention_heads", 16) * longest if eager else 0
    return rows * longest * (scores + 16 * hidden + 12 * size("intermediate_size", 4 * hidden))


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Bytes of a run block by block. present: of the process now; block: of the weights of the largest, and of what is
    made of them on the way; batch: while it is in a block; logits: of what is compared at a time.
    """

    present: int
    block: int
    batch: int
    logits: int = 0

    @property
    def least(self) -> int:
        """With every argument of a waiting batch on disk."""
        return self.present + self.block + self.batch + self.logits + PROGRAM


def block_bytes(largest: int, *, converted: bool, wide: bool) -> int:
    """Of a block in memory. converted: stored in one form, as experts are, and run in another, which are both there;
    wide: its 16-bit products are computed in float32.
    """
    return (3 if converted else 1) * largest + (copies_bytes(largest) if wide else 0)


def copies_bytes(weights: int) -> int:
    """Of the float32 copies of so many bytes of 16-bit weights, at most."""
    return min(WEIGHT_BYTES, 2 * weights)


def logits_bytes(model: Any, tokens: int) -> int:
    """Of the logits of so many tokens, in the model's dtype and once in float32, as some models return them."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return tokens * vocabulary * (4 + int(next(model.parameters()).element_size()))


def room_to_run(model: Any, weights: BlockWeights, largest: Tensor, *, logits: int = 0, graph: int = 0) -> Room:
    """What of the budget is left for batches that wait, once no block is in memory.

    largest: int64 [batch, longest], token ids. logits: bytes of what is compared at a time; graph: of what is kept of a
    block for gradients. Raises UsageError where the budget is too small.
    """
    weights.drop()
    if weights.budget is None:
        return UNLIMITED
    give_back()  # what a stage before has freed is not what this one finds in use
    rows, longest = largest.shape
    batch = activation_bytes(model.config, rows, longest, eager=model.config._attn_implementation == "eager")
    block = block_bytes(weights.largest, converted=weights.converted, wide=arithmetic_now(model) == "float32")
    needed = Needs(present=resident_bytes(), block=block, batch=batch + graph, logits=logits)
    return room_for_inputs(weights.budget, needed, largest.device)


def half(room: Room) -> Room:
    """Of a room that two are to share."""
    return Room(device=room.device // 2, host=room.host // 2)


def room_for_inputs(budget: int, needed: Needs, device: torch.device) -> Room:
    """What of a budget is left for the arguments of blocks. Raises UsageError where it is too small for anything."""
    if needed.present + needed.block + needed.logits > budget:
        what = "a single block, with the logits of a sample," if needed.logits else "a single block"
        raise UsageError(
            f"{what} does not fit",
            where=f"--memory-budget {size_option(budget)}",
            hint="give it the budget that `quantaudit plan` names, or shorter samples with --max-length",
        )
    left = max(0, budget - needed.least)
    if device.type == "cpu":
        return Room(device=left)
    return Room(device=int(torch.accelerator.get_memory_info(device)[0] // 4), host=left)
