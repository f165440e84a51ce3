"""From prices to the KL that a simulation would give: what any change costs by rounding, and how sums of prices bend.

Prices are second-order and add up. Two things are not in them, and both are measured on the model itself:

- In 16-bit arithmetic the least change, anywhere, flips roundings in every later layer. What that costs depends on how
  deep it enters and hardly on its size; it comes once for a whole recipe, however many groups are quantized.
- Where prices are large, the next order is no longer small. One simulated recipe that quantizes everything shows how
  far its KL lies above or below its prices' sum; smaller sums bend in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantaudit.common.progress import Advance, no_advance

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor, nn

    from quantaudit.corpus.tokens import TokenizedSample
    from quantaudit.model.forward.batches import Batch
    from quantaudit.simulate.logits.kl import Scratch

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditivityCurve:
    """KL of a recipe, nats per token, from the sum S of its groups' prices: floor + S·(1 + c·S), and for a negative
    curvature c floor + S/(1 − c·S), which never falls. curvature: per nat. fitted_up_to: the largest sum among the
    simulated recipes; above it the ratio of KL to S stays constant.
    """

    floor: float = 0.0
    curvature: float = 0.0
    fitted_up_to: float = math.inf

    def kl(self, total: float) -> float:
        """total: sum of prices, nats per token. 0 for a recipe that costs nothing."""
        if total <= 0:
            return 0.0
        bent = self.curvature * min(total, self.fitted_up_to)
        ratio = 1 + bent if bent >= 0 else 1 / (1 - bent)
        return self.floor + total * ratio


def fit_curve(simulated: Iterable[tuple[float, float | None]], floor: float) -> AdditivityCurve:
    """The curve through the simulated recipe whose prices sum to most. simulated: (sum of prices, KL) of recipes.

    Without a usable one the curve is straight.
    """
    usable = [(total, kl) for total, kl in simulated if kl is not None and math.isfinite(kl) and floor + total > 0]
    total, kl = max(usable, default=(0.0, 0.0))
    if kl is None or total <= 0 or kl <= floor:
        return AdditivityCurve(floor=floor)
    ratio = (kl - floor) / total
    curvature = (ratio - 1) / total if ratio >= 1 else (1 - 1 / ratio) / total
    return AdditivityCurve(floor=floor, curvature=curvature, fitted_up_to=total)


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
    import torch

    from quantaudit.model.forward.batches import batches
    from quantaudit.simulate.logits.kl import Scratch
    from quantaudit.simulate.replay.resume import can_skip

    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    chosen = sorted({round(i * (len(blocks) - 1) / max(depths - 1, 1)) for i in range(depths)})
    sums, scratch = dict.fromkeys(chosen, 0.0), Scratch()
    skips = len(chosen) > 1 and can_skip(model, blocks, samples)
    for batch in batches(samples, 1, pad=0, device=device):
        for depth, kl in _perturbed_kls(model, blocks, batch, chosen, generator, scratch, skips):
            sums[depth] += kl
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
    import torch

    from quantaudit.model.forward.batches import forward
    from quantaudit.simulate.logits.kl import compare, token_stats
    from quantaudit.simulate.replay.resume import remember_outputs, skipped

    with remember_outputs(model, blocks[: max(depths)] if skips else ()) as outputs:
        clean = forward(model, batch)[0]
    nothing = torch.empty(0, dtype=torch.int64, device=clean.device)  # no loss is wanted
    clean_stats = token_stats(clean, nothing, scratch)
    for depth in depths:
        with skipped(model, outputs, blocks[:depth]), _perturbed(model.get_submodule(blocks[depth]), generator):
            _, kl = compare(clean, clean_stats, forward(model, batch)[0], nothing, scratch)
        yield depth, float(kl.sum(dtype=torch.float64))


def perturb_ulp(x: Tensor, generator: torch.Generator) -> Tensor:
    """A copy of x in which one element in 1,024 is one step of its dtype larger or smaller; zeros stay."""
    import torch

    bits = x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)
    chosen = torch.rand(x.shape, generator=generator, device=x.device) < max(PERTURBED_SHARE, 8 / x.numel())
    sign = torch.randint(0, 2, x.shape, generator=generator, device=x.device, dtype=bits.dtype) * 2 - 1
    moved = (bits + sign).view(x.dtype)
    return torch.where(chosen & (x != 0) & moved.isfinite(), moved, x)


@contextmanager
def _perturbed(block: nn.Module, generator: torch.Generator) -> Iterator[None]:
    from quantaudit.model.forward.hooks import replace_inputs

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if args:
            return (perturb_ulp(args[0], generator), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": perturb_ulp(kwargs["hidden_states"], generator)}

    with replace_inputs(block, hook):
        yield
