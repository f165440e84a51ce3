"""The rounding floor: the KL of the least change, by depth, which second-order prices leave out.

In 16-bit arithmetic the least change, anywhere, flips roundings in every later layer. What that costs depends on how
deep it enters and hardly on its size; it comes once for a whole recipe, however many groups are quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantaudit.common.outputs.resume import units_of
from quantaudit.common.progress import Advance, no_advance
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
    where they are on disk; all passes then run side by side. `progress` is called after each sample.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    chosen = sorted({round(i * (len(blocks) - 1) / max(depths - 1, 1)) for i in range(depths)})
    sums = dict.fromkeys(chosen, 0.0)
    units = units_of("rounding floor")
    finished = units.get_json("samples") or {"samples": 0}
    if finished["samples"]:
        sums = dict(zip(chosen, finished["sums"], strict=True))
        generator.set_state(torch.tensor(list(bytes.fromhex(finished["generator"])), dtype=torch.uint8))
    progress(finished["samples"])
    pending = list(batches(samples, 1, pad=0, device=device))[finished["samples"] :]
    for number, kls in enumerate(_passes(model, blocks, pending, chosen, generator, weights), 1 + finished["samples"]):
        for depth, kl in kls:
            sums[depth] += kl
        state = bytes(generator.get_state().tolist()).hex()
        units.put_json("samples", {"samples": number, "sums": [*sums.values()], "generator": state})
        progress()
    tokens = sum(len(sample.ids) for sample in samples)
    return RoundingFloor(depths=tuple(chosen), kl=tuple(max(total / tokens, 0.0) for total in sums.values()))


def _passes(
    model: nn.Module,
    blocks: Sequence[str],
    pending: Sequence[Batch],
    depths: Sequence[int],
    generator: torch.Generator,
    weights: BlockWeights | None,
) -> Iterator[Iterable[tuple[int, float]]]:
    """For each sample, depths with KL in nats summed over its tokens."""
    scratch = Scratch()
    if pending and weights is not None:
        yield from _SideBySide(model, weights, pending, depths, generator, scratch).kls()
    elif pending:
        samples = [batch.samples[0] for batch in pending]
        skips = len(depths) > 1 and can_skip(model, blocks, samples)
        for batch in pending:
            yield _perturbed_kls(model, blocks, batch, depths, generator, scratch, skips)


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
        with (
            skipped(model, outputs, blocks[:depth]),
            _input_changed(model.get_submodule(blocks[depth]), lambda x: perturb_ulp(x, generator)),
        ):
            _, kl = compare(clean, clean_stats, forward(model, batch)[0], nothing, scratch)
        yield depth, float(kl.sum(dtype=torch.float64))


@dataclass(slots=True)
class _SideBySide:
    """The same for all samples at once, of a model whose blocks are on disk.

    shapes: by sample, a tensor of the shape and dtype that the first block is given. states: of the generator, by
    sample and depth, when it would be its turn if samples ran one after the other.
    """

    model: nn.Module
    weights: BlockWeights
    pending: Sequence[Batch]
    depths: Sequence[int]
    generator: torch.Generator
    scratch: Scratch
    shapes: dict[int, Tensor] = field(default_factory=dict)
    states: dict[tuple[int, int], Tensor] = field(default_factory=dict)
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
        if job is None:  # somebody runs the model by themselves
            return x
        if job.variant == 0:  # all samples come before the first change
            self.shapes.setdefault(job.number, torch.empty_like(x, device="meta"))
        if job.variant == 0 or depth != self.depths[job.variant - 1]:
            return x
        if not self.states:
            self._draw_all()
        self.generator.set_state(self.states[job.number, job.variant])
        return perturb_ulp(x, self.generator)

    def _draw_all(self) -> None:
        """Draw for every sample and depth as if they ran one after the other, and remember where each began."""
        for number in range(len(self.pending)):
            for variant in range(1, 1 + len(self.depths)):
                self.states[number, variant] = self.generator.get_state()
                _draws(self.shapes[number], self.generator)


def _draws(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which elements of x move, bool, and by how many steps, −1 or 1, in an integer of its size."""
    device, dtype = generator.device, torch.int16 if x.element_size() == 2 else torch.int32
    chosen = torch.rand(x.shape, generator=generator, device=device) < max(PERTURBED_SHARE, 8 / x.numel())
    sign = torch.randint(0, 2, x.shape, generator=generator, device=device, dtype=dtype) * 2 - 1
    return chosen, sign


def perturb_ulp(x: Tensor, generator: torch.Generator) -> Tensor:
    """A copy of x in which one element in 1,024 is one step of its dtype larger or smaller; zeros stay."""
    bits = x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)
    chosen, sign = _draws(x, generator)
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
