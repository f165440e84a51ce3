"""The rounding floor: the KL of the least change, by depth, which second-order prices leave out.

In 16-bit arithmetic the least change, anywhere, flips roundings in every later layer. What that costs depends on how
deep it enters and hardly on its size; it comes once for a whole recipe, however many groups are quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantaudit.common.outputs.resume import units_of
from quantaudit.common.progress import Advance, no_advance
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.forward.batches import Batch, batches, forward
from quantaudit.model.forward.hooks import replace_inputs
from quantaudit.simulate.logits.kl import Scratch, compare, token_stats
from quantaudit.simulate.logits.resume import can_skip, remember_outputs, skipped

PERTURBED_SHARE = 1 / 1024
"""Part of the elements that are moved by one step. A sixteenth gave the same floor: see docs/prediction.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingFloor:
    """KL, nats per token, of the least change where it enters a block; straight lines between the measured depths."""

    depths: tuple[int, ...]
    kl: tuple[float, ...]

    def at(self, layer: int) -> float:
        """The floor of a change inside one decoder block."""
        return float(np.interp(layer, self.depths, self.kl))


def rounding_floor(
    model: nn.Module,
    blocks: Sequence[str],
    samples: Sequence[TokenizedSample],
    *,
    depths: int = 3,
    seed: int = 0,
    progress: Advance = no_advance,
) -> RoundingFloor:
    """What moving a few elements of a block's input by one representable step does to the logits.

    depths: at how many blocks, from the first to the last. Costs a forward pass without a change, and for each depth
    one that begins there, or at the first block where the model's blocks cannot be skipped. `progress` is called after
    each sample.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    chosen = sorted({round(i * (len(blocks) - 1) / max(depths - 1, 1)) for i in range(depths)})
    sums, scratch = dict.fromkeys(chosen, 0.0), Scratch()
    skips = len(chosen) > 1 and can_skip(model, blocks, samples)
    units = units_of("rounding floor")
    finished = units.get_json("samples") or {"samples": 0}
    if finished["samples"]:
        sums = dict(zip(chosen, finished["sums"], strict=True))
        generator.set_state(torch.tensor(list(bytes.fromhex(finished["generator"])), dtype=torch.uint8))
    for number, batch in enumerate(batches(samples, 1, pad=0, device=device), 1):
        if number > finished["samples"]:
            for depth, kl in _perturbed_kls(model, blocks, batch, chosen, generator, scratch, skips):
                sums[depth] += kl
            state = bytes(generator.get_state().tolist()).hex()
            units.put_json("samples", {"samples": number, "sums": [*sums.values()], "generator": state})
        progress()
    tokens = sum(len(sample.ids) for sample in samples)
    return RoundingFloor(depths=tuple(chosen), kl=tuple(max(total / tokens, 0.0) for total in sums.values()))


def _perturbed_kls(
    model: nn.Module,
    blocks: Sequence[str],
    batch: Batch,
    depths: Sequence[int],
    generator: torch.Generator,
    scratch: Scratch,
    skips: bool,
) -> Iterator[tuple[int, float]]:
    """For each depth, KL in nats summed over the tokens of one sample. skips: whether earlier blocks are not run."""
    with remember_outputs(model, blocks[: max(depths)] if skips else ()) as outputs:
        clean = forward(model, batch)[0]
    nothing = torch.empty(0, dtype=torch.int64, device=clean.device)  # losses are not needed
    clean_stats = token_stats(clean, nothing, scratch)
    for depth in depths:
        with skipped(model, outputs, blocks[:depth]), _perturbed(model.get_submodule(blocks[depth]), generator):
            _, kl = compare(clean, clean_stats, forward(model, batch)[0], nothing, scratch)
        yield depth, float(kl.sum(dtype=torch.float64))


def perturb_ulp(x: Tensor, generator: torch.Generator) -> Tensor:
    """A copy of x in which one element in 1,024 is one step of its dtype larger or smaller; zeros stay."""
    bits = x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)
    chosen = torch.rand(x.shape, generator=generator, device=x.device) < max(PERTURBED_SHARE, 8 / x.numel())
    sign = torch.randint(0, 2, x.shape, generator=generator, device=x.device, dtype=bits.dtype) * 2 - 1
    moved = (bits + sign).view(x.dtype)
    return torch.where(chosen & (x != 0) & moved.isfinite(), moved, x)


@contextmanager
def _perturbed(block: nn.Module, generator: torch.Generator) -> Iterator[None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if args:
            return (perturb_ulp(args[0], generator), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": perturb_ulp(kwargs["hidden_states"], generator)}

    with replace_inputs(block, hook):
        yield
