"""How fast this machine is at a model that is not loaded: a block with random weights, products, rounding, a disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantaudit.common.outputs.scratch import scratch_folder
from quantaudit.model.blockwise.block_weights import stored_bytes
from quantaudit.model.blockwise.budget import UNLIMITED
from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.model.blockwise.lockstep import run_in_lockstep
from quantaudit.model.forward.batches import last_logit_only
from quantaudit.model.structure import hidden_size, token_shares
from quantaudit.quant.schemes import Scheme
from quantaudit.quant.standard import Shapes
from quantaudit.quant.weights import quantize_weight
from quantaudit.simulate.cost import Speed
from quantaudit.simulate.logits.kl import Scratch, compare, token_stats

TAPPED = 1.3
"""A pass with every site tapped, in passes without; measured by `benchmarks/overhead.py`."""
BLOCKS = 2
"""Decoder blocks that are timed."""
LARGEST = 2 << 30
"""Bytes of blocks that are given random weights at most; beyond, products of the model's shapes are timed alone."""
TOKENS = 256
"""Tokens that a block is timed with at most."""
_SLICE = 4096
"""Tokens of the vocabulary that a slice of the output projection has."""
_ROUNDED = 1 << 20
"""Elements of a weight that is quantized to see how long it takes, at most."""
_CORNER = (1 << 13, 1 << 14)
"""Rows and columns of a weight that is timed, at most: the machine need not hold those of the model."""
_FILE = 1 << 26
"""Bytes that are written to disk, and read again."""
_VOCABULARY = 16
_REPEATS = 3


def flops(model: nn.Module, path: str) -> float:
    """Operations that a part of a model does for each token in its Linears, experts by the tokens routed to them."""
    parts: list[tuple[Any, float]] = [*token_shares(model, path).values()]
    return float(sum(2 * share * linear.weight.numel() for linear, share in parts))


def head_flops(model: Any) -> float:
    """The same of the output projection."""
    return 2.0 * hidden_size(model) * int(model.config.get_text_config().vocab_size)


def speed_by_flops(model: nn.Module, blocks: Sequence[str], per_second: float) -> Speed:
    """The speed of a machine that does so many operations a second."""
    forward = sum(flops(model, path) for path in blocks) / per_second
    return Speed(measured=TAPPED * forward, forward=forward, scored=forward + head_flops(model) / per_second)


def speed_by_tokens(model: nn.Module, blocks: Sequence[str], per_second: float) -> Speed:
    """The speed of a machine whose forward passes without logits take so many tokens a second."""
    inside = sum(flops(model, path) for path in blocks)
    return speed_by_flops(model, blocks, inside * per_second)


def probed_speed(model: nn.Module, blocks: Sequence[str], device: torch.device, tokens: int) -> Speed:
    """The speed of this machine. model: on the meta device; its first blocks are left with random weights.

    tokens: of a typical sample. To be called in the arithmetic that the model will run in.
    """
    tokens = max(2, min(tokens, TOKENS))
    inside = [flops(model, path) for path in blocks]
    timed = blocks[:BLOCKS]
    seconds = None
    if sum(stored_bytes(model.get_submodule(path)) for path in timed) <= LARGEST:
        with suppress(Exception):  # a model that needs more than token ids: products alone are timed
            seconds = _block_seconds(model, timed, device, tokens) * sum(inside) / sum(inside[: len(timed)])
    if seconds is None:
        seconds = sum(inside) * tokens * _seconds_per_operation(model, timed[-1], device, tokens)
    scored = seconds + _logits_seconds(model, device, tokens)
    return Speed(measured=TAPPED * seconds / tokens, forward=seconds / tokens, scored=scored / tokens)


def rounding_seconds(shapes: Shapes, schemes: Sequence[Scheme], dtype: torch.dtype, device: torch.device) -> float:
    """Seconds to quantize all weights of these shapes once, on average over the ways in which schemes do."""
    formats = list({str(scheme.weights): scheme.weights for scheme in schemes if scheme.weights is not None}.values())
    if not shapes or not formats:
        return 0.0
    rows, columns = corner(*sorted(shapes.values(), key=lambda shape: shape[0] * shape[1])[len(shapes) // 2])
    weight = torch.randn(min(rows, max(128, _ROUNDED // columns)), columns, device=device).to(dtype)
    each = sum(best_of(partial(quantize_weight, weight, args), device) for args in formats) / len(formats)
    return each * sum(out * inside for out, inside in shapes.values()) / weight.numel()


def corner(rows: int, columns: int) -> tuple[int, int]:
    """The part of a weight of this shape that is timed."""
    return min(rows, _CORNER[0]), min(columns, _CORNER[1])


def reading_seconds(size: int) -> float:
    """Seconds to read so many bytes from the disk of the temporary folder, as far as one can be told from memory."""
    data = np.random.default_rng(0).integers(0, 256, _FILE, np.uint8).tobytes()
    with scratch_folder() as folder:
        path = folder / "probe"
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = perf_counter()
            while file.read(1 << 22):
                pass
            return (perf_counter() - start) * size / _FILE


def hashing_seconds(size: int) -> float:
    """Seconds to hash so many bytes: files are identified by what they hold."""
    data = bytes(1 << 25)
    start = perf_counter()
    hashlib.sha256(data).digest()
    return (perf_counter() - start) * size / len(data)


def best_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of a few calls, after one that warms up."""
    times = []
    for _ in range(1 + _REPEATS):
        start = perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(perf_counter() - start)
    return min(times[1:])


def _block_seconds(model: Any, blocks: Sequence[str], device: torch.device, tokens: int) -> float:
    """Seconds of these blocks, from the first on, for one sample, in a model of which nothing else has weights."""
    others = tuple(f"{path}." for path in model_blocks(model, blocks))
    embedding = nn.Embedding(_VOCABULARY, hidden_size(model), dtype=next(model.parameters()).dtype, device=device)
    kept = [model.get_input_embeddings(), model.get_output_embeddings()]
    absent = {id(tensor) for module in kept if module is not None for tensor in module.parameters()}
    model.set_input_embeddings(embedding)
    _fill(model, device, lambda name, tensor: not name.startswith(others) and id(tensor) not in absent)
    ids = torch.arange(tokens, device=device)[None] % _VOCABULARY

    def run() -> None:
        with torch.no_grad(), last_logit_only(model), InputStore(model, UNLIMITED) as store:
            run_in_lockstep(
                model,
                [*blocks, *(path.rstrip(".") for path in others)],
                [ids],
                lambda given: model(input_ids=given, use_cache=False),
                store=store,
                only=len(blocks),
            )

    return best_of(run, device)


def model_blocks(model: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Paths of the blocks that lie in one list with these, and after them."""
    parent = blocks[0].rpartition(".")[0]
    count = len(model.get_submodule(parent))  # type: ignore[arg-type]
    return [f"{parent}.{index}" for index in range(len(blocks), count)]


def _fill(model: nn.Module, device: torch.device, chosen: Callable[[str, Tensor], bool]) -> None:
    """Give random values to what has none, norms and biases ones; in place."""
    for owner, module in model.named_modules():
        for slots in (module._parameters, module._buffers):
            for leaf, tensor in slots.items():
                if tensor is None or not tensor.is_meta or not chosen(f"{owner}.{leaf}", tensor):
                    continue
                made = torch.ones(tensor.shape, dtype=tensor.dtype, device=device)
                if tensor.is_floating_point() and tensor.ndim > 1:
                    made.normal_(0, 0.02)
                slots[leaf] = nn.Parameter(made, requires_grad=False) if slots is module._parameters else made


def _seconds_per_operation(model: nn.Module, path: str, device: torch.device, tokens: int) -> float:
    """Seconds of an operation in products of the shapes of a block."""
    shapes: dict[tuple[int, int], float] = {}
    parts: Mapping[str, tuple[Any, float]] = token_shares(model, path)
    for linear, share in parts.values():
        shapes[tuple(linear.weight.shape)] = share
    dtype = next(model.parameters()).dtype
    seconds = operations = 0.0
    for shape, share in list(shapes.items())[:4]:
        (out, inside), rows = corner(*shape), max(1, round(share * tokens))
        x = torch.randn(rows, inside, device=device).to(dtype)
        weight = torch.randn(out, inside, device=device).to(dtype)
        seconds += best_of(partial(nn.functional.linear, x, weight), device)
        operations += 2.0 * rows * out * inside
    return seconds / operations


def _logits_seconds(model: Any, device: torch.device, tokens: int) -> float:
    """Seconds of the output projection and of comparing its logits, from a slice of the vocabulary."""
    dtype, vocabulary = next(model.parameters()).dtype, int(model.config.get_text_config().vocab_size)
    size, inside = corner(min(_SLICE, vocabulary), hidden_size(model))
    x = torch.randn(tokens, inside, device=device).to(dtype)
    weight = torch.randn(size, inside, device=device).mul_(0.02).to(dtype)
    nothing, scratch = torch.empty(0, dtype=torch.int64, device=device), Scratch()

    def run() -> None:
        logits = nn.functional.linear(x, weight)
        compare(logits, token_stats(logits, nothing, scratch), logits, nothing, scratch)

    return best_of(run, device) * (vocabulary / size) * (hidden_size(model) / inside)
