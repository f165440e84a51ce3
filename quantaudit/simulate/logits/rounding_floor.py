"""The rounding floor: the KL of the least change, by depth, which second-order prices leave out.

In 16-bit arithmetic the least change, anywhere, flips roundings in every later layer. What that costs depends on how
deep it enters and hardly on its size; it comes once for a whole recipe, however many groups are quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantaudit.common.outputs.resume import units_of
from quantaudit.common.progress import Advance, no_advance
from quantaudit.common.ranks.team import deal, in_order, joint
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.forward.batches import Batch, batches, forward
from quantaudit.model.forward.hooks import replace_inputs
from quantaudit.simulate.logits.kl import Scratch, TokenStats, compare, token_stats
from quantaudit.simulate.logits.resume import can_skip, remember_outputs, skipped
from quantaudit.simulate.logits.side_by_side import Job, jobs_of, run_side_by_side

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
    weights: BlockWeights | None = None,
    progress: Advance = no_advance,
) -> RoundingFloor:
    """What moving a few elements of a block's input by one representable step does to the logits.

    depths: at how many blocks, from the first to the last. Costs a forward pass without a change, and for each depth
    one that begins there, or at the first block where the model's blocks cannot be skipped. weights: of the blocks,
    where they are on disk; all passes then run side by side. `progress` is called after each sample. Each sample has
    draws of its own, whatever runs before it: ranks share them, and an interrupted run goes on with the next.
    """
    device = next(model.parameters()).device
    chosen = sorted({round(i * (len(blocks) - 1) / max(depths - 1, 1)) for i in range(depths)})
    units = units_of("rounding floor")
    order = list(batches(samples, device=device))
    kept = {_unit(batch): kls for batch in order if (kls := units.get_json(_unit(batch))) is not None}
    measured: dict[str, list[float]] = joint(kept)
    own = deal(order, lambda batch: batch.tokens)
    pending = [batch for batch in own if _unit(batch) not in measured]
    progress(len(own) - len(pending))
    passes = _passes(model, blocks, pending, chosen, _Draws(device=device, seed=seed), weights)
    for batch, kls in zip(pending, passes, strict=True):
        by_depth = dict(kls)
        measured[_unit(batch)] = [by_depth[depth] for depth in chosen]
        units.put_json(_unit(batch), measured[_unit(batch)])
        progress()
    measured = joint(measured)
    totals = [in_order(measured[_unit(batch)][place] for batch in order) for place in range(len(chosen))]
    tokens = sum(len(sample.ids) for sample in samples)
    return RoundingFloor(depths=tuple(chosen), kl=tuple(max(total / tokens, 0.0) for total in totals))


def _unit(batch: Batch) -> str:
    """Names what one sample gave."""
    return str(batch.samples[0].index)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """What is drawn for each sample and depth."""

    device: torch.device
    seed: int

    def of(self, sample: TokenizedSample, depth: int) -> torch.Generator:
        """A generator of its own for one sample and one depth."""
        (word,) = np.random.SeedSequence([self.seed, sample.index, depth]).generate_state(1)
        return torch.Generator(self.device).manual_seed(int(word))


def _passes(
    model: nn.Module,
    blocks: Sequence[str],
    pending: Sequence[Batch],
    depths: Sequence[int],
    draws: _Draws,
    weights: BlockWeights | None,
) -> Iterator[Iterable[tuple[int, float]]]:
    """For each sample, depths with KL in nats summed over its tokens."""
    scratch = Scratch()
    if pending and weights is not None:
        yield from _SideBySide(model, weights, pending, depths, draws, scratch).kls()
    elif pending:
        samples = [batch.samples[0] for batch in pending]
        skips = len(depths) > 1 and can_skip(model, blocks, samples)
        for batch in pending:
            yield _perturbed_kls(model, blocks, batch, depths, draws, scratch, skips)


def _perturbed_kls(
    model: nn.Module,
    blocks: Sequence[str],
    batch: Batch,
    depths: Sequence[int],
    draws: _Draws,
    scratch: Scratch,
    skips: bool,
) -> Iterator[tuple[int, float]]:
    """For each depth, KL in nats summed over the tokens of one sample. skips: whether earlier blocks are not run."""
    with remember_outputs(model, blocks[: max(depths)] if skips else ()) as outputs:
        clean = forward(model, batch)[0]
    nothing = torch.empty(0, dtype=torch.int64, device=clean.device)  # losses are not needed
    clean_stats = token_stats(clean, nothing, scratch)
    for depth in depths:
        generator = draws.of(batch.samples[0], depth)
        with (
            skipped(model, outputs, blocks[:depth]),
            _input_changed(model.get_submodule(blocks[depth]), partial(perturb_ulp, generator=generator)),
        ):
            _, kl = compare(clean, clean_stats, forward(model, batch)[0], nothing, scratch)
        yield depth, float(kl.sum(dtype=torch.float64))


@dataclass(slots=True)
class _SideBySide:
    """The same for all samples at once, of a model whose blocks are on disk."""

    model: nn.Module
    weights: BlockWeights
    pending: Sequence[Batch]
    depths: Sequence[int]
    draws: _Draws
    scratch: Scratch
    job: Job | None = None
    clean: tuple[Tensor, TokenStats] | None = None

    def kls(self) -> list[list[tuple[int, float]]]:
        """By sample, then by depth."""
        samples = [batch.samples[0] for batch in self.pending]
        measured: list[list[tuple[int, float]]] = [[] for _ in samples]

        def run(job: Job) -> None:
            logits = forward(self.model, job.batch)[0]
            nothing = torch.empty(0, dtype=torch.int64, device=logits.device)
            if job.variant == 0:
                self.clean = logits, token_stats(logits, nothing, self.scratch)
                return
            assert self.clean is not None  # it comes first of its sample
            _, kl = compare(*self.clean, logits, nothing, self.scratch)
            measured[job.number].append((self.depths[job.variant - 1], float(kl.sum(dtype=torch.float64))))

        jobs = jobs_of(self.model, [samples] * (1 + len(self.depths)))
        with ExitStack() as stack:
            for depth in self.depths:
                block = self.model.get_submodule(self.weights.blocks[depth])
                stack.enter_context(_input_changed(block, partial(self._enters, depth)))
            run_side_by_side(self.model, self.weights, jobs, run, self._of_job)
        return measured

    @contextmanager
    def _of_job(self, job: Job, _block: int | None) -> Iterator[None]:
        self.job = job
        yield
        self.job = None

    def _enters(self, depth: int, x: Tensor) -> Tensor:
        """What the block at a depth is given in place of x."""
        job = self.job
        # None: somebody runs the model by themselves.
        if job is None or job.variant == 0 or depth != self.depths[job.variant - 1]:
            return x
        return perturb_ulp(x, self.draws.of(job.sample, depth))


def perturb_ulp(x: Tensor, generator: torch.Generator) -> Tensor:
    """A copy of x in which one element in 1,024 is one step of its dtype larger or smaller; zeros stay."""
    dtype, device = torch.int16 if x.element_size() == 2 else torch.int32, generator.device
    chosen = torch.rand(x.shape, generator=generator, device=device) < max(PERTURBED_SHARE, 8 / x.numel())
    sign = torch.randint(0, 2, x.shape, generator=generator, device=device, dtype=dtype) * 2 - 1
    bits = x.contiguous().view(dtype)
    moved = (bits + sign).view(x.dtype)
    return torch.where(chosen & (x != 0) & moved.isfinite(), moved, x)


@contextmanager
def _input_changed(block: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context a block is given what `change` makes of its hidden states."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    with replace_inputs(block, hook):
        yield
