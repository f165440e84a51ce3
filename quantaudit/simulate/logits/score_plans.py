"""The whole model under a recipe: logits KL to the unquantized model, top-1 agreement, perplexity before and after.

In the same forwards, how far each decoder block's output has drifted with everything before it quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantaudit.common.outputs.resume import Units, units_of
from quantaudit.common.progress import Advance, no_advance
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.forward.batches import batches, forward
from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.forward.hooks import watch_inputs, watch_outputs
from quantaudit.model.structure import hidden_size
from quantaudit.simulate.logits.aggregate import SampleScore, recipe_row
from quantaudit.simulate.logits.kl import Scratch, TokenStats, compare, token_stats
from quantaudit.simulate.quantized.modules import quantized_modules
from quantaudit.simulate.quantized.plan import Plan, PlanWeights
from quantaudit.simulate.quantized.smoothquant import smoothed
from quantaudit.simulate.records import RecipeRow

KEPT_BYTES = 1 << 28
"""Unquantized logits and block outputs kept at once, at most; a larger evaluation runs in several rounds."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """One block's output [1, tokens, hidden] in the model's dtype, and ‖h_t‖², float32 [1, tokens]."""

    output: Tensor
    norm: Tensor

    @classmethod
    def of(cls, h: Tensor) -> Hidden:
        """A copy: the model may go on in place."""
        wide = h.float()
        norm = torch.linalg.vecdot(wide, wide).clamp_min_(torch.finfo(torch.float32).tiny)
        return cls(output=h.clone(), norm=norm)

    def drift(self, h: Tensor) -> Tensor:
        """Σ over tokens of ‖Δh_t‖² / ‖h_t‖², as `block_damage` takes it: a float64 scalar."""
        delta = h.to(torch.float32, copy=True).sub_(self.output)
        total: Tensor = (torch.linalg.vecdot(delta, delta) / self.norm).sum(dtype=torch.float64)
        return total


_NOTHING: Mapping[str, Callable[[Tensor], None]] = {}


@dataclass(frozen=True, slots=True)
class Clean:
    """One sample as the unquantized model sees it.

    logits: [tokens, vocabulary] in the model's dtype; hidden: by index, the outputs of the blocks that ran.
    """

    sample: TokenizedSample
    logits: Tensor
    stats: TokenStats
    hidden: Mapping[int, Hidden]


@torch.no_grad()
def score_plans(
    model: nn.Module,
    samples: Sequence[TokenizedSample],
    plans: Sequence[Plan],
    *,
    blocks: Sequence[str] = (),
    taps: Mapping[str, Callable[[Tensor], None]] = _NOTHING,
    progress: Advance = no_advance,
) -> list[RecipeRow]:
    """Scores of the model under every plan against the unmodified model, on the same tokens.

    blocks: paths of the decoder blocks whose drift is recorded. taps: by module path, what is given its input while the
    unquantized model runs. `progress` is called after each sample and plan. Scores that an
    interrupted run had are taken over; the unquantized model runs again where something is left to do.
    """
    scores: list[list[SampleScore]] = [[] for _ in plans]
    weights, scratch, units = PlanWeights(), Scratch(), units_of("scores")
    device = next(model.parameters()).device
    for chunk in _chunks(samples, KEPT_BYTES // _bytes_per_token(model, len(blocks))):
        finished = [_finished(units, index, chunk) for index in range(len(plans))]
        needed = [s for s in chunk if taps or any(s.index not in scored for scored in finished)]
        clean: list[Clean] = []  # what one round keeps is gone before the next begins
        with _inputs(model, taps):
            clean = list(_clean(model, needed, blocks))
        for index, (plan, scored) in enumerate(zip(plans, finished, strict=True)):
            pending = [base for base in clean if base.sample.index not in scored]
            for _ in scored:
                progress()
            if pending:
                with (
                    smoothed(model, plan.smoothed),
                    quantized_modules(model, weights.of(model, plan), plan.inputs(device)),
                ):
                    for score in _scores(model, pending, blocks, scratch, progress):
                        if units.kept:
                            units.put(f"{index} {score.sample.index}", score.to_bytes())
                        scored[score.sample.index] = score
            scores[index] += [scored[sample.index] for sample in chunk]
    return [recipe_row(plan, plan_scores) for plan, plan_scores in zip(plans, scores, strict=True)]


def _finished(units: Units, index: int, samples: Sequence[TokenizedSample]) -> dict[int, SampleScore]:
    """Scores that an interrupted run had, under the plan of an index, by the sample's own."""
    kept = {sample.index: (sample, units.get(f"{index} {sample.index}")) for sample in samples}
    return {number: SampleScore.from_bytes(sample, data) for number, (sample, data) in kept.items() if data is not None}


@torch.no_grad()
def score_checkpoint(
    model: nn.Module, other: nn.Module, samples: Sequence[TokenizedSample], plan: Plan, *, blocks: Sequence[str] = ()
) -> RecipeRow:
    """The score of another model of the same architecture, such as a quantized checkpoint, on the same tokens.

    plan: what the other is meant to be; it gives the row its names and is not applied.
    """
    scores: list[SampleScore] = []
    scratch = Scratch()
    for chunk in _chunks(samples, KEPT_BYTES // _bytes_per_token(model, len(blocks))):
        scores += [_score(other, base, blocks, scratch) for base in _clean(model, chunk, blocks)]
    return recipe_row(plan, scores)


def _clean(model: nn.Module, samples: Sequence[TokenizedSample], blocks: Sequence[str]) -> Iterator[Clean]:
    scratch = Scratch()
    for sample in samples:
        hidden: dict[int, Hidden] = {}
        with _block_outputs(model, blocks, lambda index, h, kept=hidden: kept.update({index: Hidden.of(h)})):
            logits = _logits(model, sample)
        stats = token_stats(logits, _targets(sample, logits), scratch)
        yield Clean(sample=sample, logits=logits, stats=stats, hidden=hidden)
        del logits  # before the next sample's are computed


def _scores(
    model: nn.Module, clean: Sequence[Clean], blocks: Sequence[str], scratch: Scratch, progress: Advance
) -> Iterator[SampleScore]:
    for base in clean:
        yield _score(model, base, blocks, scratch)
        progress()


def _score(model: nn.Module, base: Clean, blocks: Sequence[str], scratch: Scratch) -> SampleScore:
    """The score of one sample under the model in its present state."""
    with _drifts(model, blocks, base.hidden) as drifts:
        logits = _logits(model, base.sample)
    stats, kl = compare(base.logits, base.stats, logits, _targets(base.sample, logits), scratch)
    return SampleScore(
        sample=base.sample,
        kl=kl.double().cpu().numpy(),
        agreed=(stats.top == base.stats.top).cpu().numpy(),
        loss=stats.loss.double().cpu().numpy(),
        loss_base=base.stats.loss.double().cpu().numpy(),
        drift=np.array([float(drifts[index]) if index in drifts else np.nan for index in range(len(blocks))]),
    )


def _targets(sample: TokenizedSample, logits: Tensor) -> Tensor:
    return torch.from_numpy(sample.ids[1:]).to(logits.device)


def _logits(model: nn.Module, sample: TokenizedSample) -> Tensor:
    """Logits [tokens, vocabulary] in the model's dtype."""
    (batch,) = batches([sample], 1, pad=0, device=next(model.parameters()).device)
    return forward(model, batch)[0]


@contextmanager
def _drifts(model: nn.Module, blocks: Sequence[str], clean: Mapping[int, Hidden]) -> Iterator[dict[int, Tensor]]:
    """Drift by index of the block, filled in as the model runs."""
    drifts: dict[int, Tensor] = {}
    with _block_outputs(model, blocks, lambda index, h: drifts.update({index: clean[index].drift(h)})):
        yield drifts


@contextmanager
def _inputs(model: nn.Module, taps: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Within the context, each tap takes the first argument of its module."""
    with ExitStack() as stack:
        for path, take in taps.items():
            hook = lambda _module, args, _kwargs, take=take: take(args[0])  # noqa: E731
            stack.enter_context(watch_inputs(model.get_submodule(path), hook))
        yield


@contextmanager
def _block_outputs(model: nn.Module, blocks: Sequence[str], take: Any) -> Iterator[None]:
    """Within the context, `take` is called with each block's index and output."""
    with ExitStack() as stack:
        for index, path in enumerate(blocks):
            hook = lambda _module, _args, _kwargs, h, index=index: take(index, first_tensor(h))  # noqa: E731
            stack.enter_context(watch_outputs(model.get_submodule(path), hook))
        yield


def _bytes_per_token(model: nn.Module, blocks: int) -> int:
    config: Any = model.config
    text = config.get_text_config()
    return int((text.vocab_size + blocks * hidden_size(model)) * next(model.parameters()).element_size())


def _chunks(samples: Sequence[TokenizedSample], tokens: int) -> Iterator[list[TokenizedSample]]:
    chunk: list[TokenizedSample] = []
    for sample in samples:
        if chunk and sum(len(s.ids) for s in chunk) + len(sample.ids) > tokens:
            yield chunk
            chunk = []
        chunk.append(sample)
    if chunk:
        yield chunk
