"""The whole model under a recipe: logits KL to the unquantized model, top-1 agreement, perplexity before and after.

In the same forwards, how far each decoder block's output has drifted with everything before it quantized.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantaudit.common.outputs.resume import Units, units_of
from quantaudit.common.progress import Advance, no_advance
from quantaudit.common.ranks.team import deal, joint, team
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.forward.batches import batches, forward
from quantaudit.model.structure import hidden_size
from quantaudit.simulate.logits.aggregate import SampleScore, recipe_row
from quantaudit.simulate.logits.block_outputs import Hidden, block_outputs, drifts_of, module_inputs
from quantaudit.simulate.logits.kl import Scratch, TokenStats, compare, confident, token_stats
from quantaudit.simulate.logits.side_by_side import AT_ONCE, Job, jobs_of, run_side_by_side, shared_progress
from quantaudit.simulate.quantized.modules import quantized_modules
from quantaudit.simulate.quantized.plan import Plan, PlanWeights
from quantaudit.simulate.quantized.plan_by_block import PlansByBlock
from quantaudit.simulate.quantized.smoothquant import smoothed
from quantaudit.simulate.records import RecipeRow

KEPT_BYTES = 1 << 28
"""Unquantized logits and block outputs kept at once, at most; a larger evaluation runs in several rounds."""


Taps = Mapping[str, Callable[[int, Tensor], None]]
"""By module path, what is given a sample's index and the module's input."""
_NOTHING: Taps = {}


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
    taps: Taps = _NOTHING,
    weights: BlockWeights | None = None,
    progress: Advance = no_advance,
) -> list[RecipeRow]:
    """Scores of the model under every plan against the unmodified model, on the same tokens.

    blocks: paths of the decoder blocks whose drift is recorded. taps: what is given inputs while the unquantized model
    runs. weights: of its blocks, where they are on disk; taps are then of modules inside blocks. `progress` is called
    after each sample and plan. Scores that an interrupted run had are taken over; the unquantized model runs again
    where something is left to do. Ranks share the samples; what taps are given stays on each of them.
    """
    units = _Finished.of(units_of("scores"), samples, plans)
    own = deal(samples, lambda sample: len(sample.ids))
    if weights is None:
        _score_in_memory(model, own, plans, blocks, taps, progress, units)
    else:
        _ByBlock(model, weights, own, plans, blocks, taps, units).score(progress)
    scores = units.of_all_ranks()
    return [recipe_row(plan, plan_scores) for plan, plan_scores in zip(plans, scores, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """Scores by plan, then by the sample's index. units: where they are kept."""

    units: Units
    samples: Sequence[TokenizedSample]
    scores: Sequence[dict[int, SampleScore]]

    @classmethod
    def of(cls, units: Units, samples: Sequence[TokenizedSample], plans: Sequence[Plan]) -> _Finished:
        """With the scores that an interrupted run had on any rank."""
        keys = [f"{plan} {sample.index}" for plan in range(len(plans)) for sample in samples]
        kept = joint({key: data for key in keys if (data := units.get(key)) is not None})
        finished = cls(units=units, samples=samples, scores=[{} for _ in plans])
        finished._restore(kept)
        return finished

    def add(self, plan: int, score: SampleScore) -> None:
        """One more, which is kept."""
        self.scores[plan][score.sample.index] = score
        if self.units.kept:
            self.units.put(f"{plan} {score.sample.index}", score.to_bytes())

    def of_all_ranks(self) -> list[list[SampleScore]]:
        """By plan, then by sample, in their order."""
        if team().size > 1:
            own = {
                f"{plan} {index}": score.to_bytes()
                for plan, of in enumerate(self.scores)
                for index, score in of.items()
            }
            self._restore(joint(own))
        return [[of_plan[sample.index] for sample in self.samples] for of_plan in self.scores]

    def _restore(self, kept: Mapping[str, bytes]) -> None:
        for plan, of_plan in enumerate(self.scores):
            for sample in self.samples:
                data = kept.get(f"{plan} {sample.index}")
                if data is not None and sample.index not in of_plan:
                    of_plan[sample.index] = SampleScore.from_bytes(sample, data)


def _score_in_memory(
    model: nn.Module,
    samples: Sequence[TokenizedSample],
    plans: Sequence[Plan],
    blocks: Sequence[str],
    taps: Taps,
    progress: Advance,
    finished: _Finished,
) -> None:
    """One plan and one sample after the other."""
    weights, scratch = PlanWeights(), Scratch()
    device = next(model.parameters()).device
    for chunk in _chunks(samples, KEPT_BYTES // _bytes_per_token(model, len(blocks))):
        needed = [s for s in chunk if taps or any(s.index not in scored for scored in finished.scores)]
        clean: list[Clean] = []  # what one round keeps is gone before the next begins
        clean = list(_clean(model, needed, blocks, taps))
        for index, (plan, scored) in enumerate(zip(plans, finished.scores, strict=True)):
            pending = [base for base in clean if base.sample.index not in scored]
            for _ in [sample for sample in chunk if sample.index in scored]:
                progress()
            if pending:
                with (
                    smoothed(model, plan.smoothed),
                    quantized_modules(model, weights.of(model, plan), plan.inputs(device)),
                ):
                    for score in _scores(model, pending, blocks, scratch, progress):
                        finished.add(index, score)


@dataclass(slots=True)
class _ByBlock:
    """Scores under every plan of a model whose blocks are on disk, each read once for all samples and plans.

    clean: by sample, what its plans are compared to, until the last of them is done. hidden: by sample, the unquantized
    output of the block that all are at, and its index among `blocks`. drifts: by plan and sample, then by that index.
    """

    model: nn.Module
    weights: BlockWeights
    samples: Sequence[TokenizedSample]
    plans: Sequence[Plan]
    blocks: Sequence[str]
    taps: Taps
    finished: _Finished
    scratch: Scratch = field(default_factory=Scratch)
    clean: dict[int, Clean] = field(default_factory=dict)
    left: Counter[int] = field(default_factory=Counter)
    hidden: dict[int, tuple[int, Hidden]] = field(default_factory=dict)
    drifts: dict[tuple[int, int], dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))

    def score(self, progress: Advance) -> None:
        """Every sample under every plan."""
        if any(plan.smoothed for plan in self.plans):
            raise MeasurementError(
                "a recipe that smooths is not simulated block by block", hint="give it enough memory to run whole"
            )
        for scored in self.finished.scores:
            progress(sum(sample.index in scored for sample in self.samples))
        for start in range(0, max(len(self.plans), 1), AT_ONCE):
            self._side_by_side(range(start, min(start + AT_ONCE, len(self.plans))), progress)
            self.taps = {}  # they have seen every sample

    def _side_by_side(self, numbers: Sequence[int], progress: Advance) -> None:
        pending = [[s for s in self.samples if s.index not in self.finished.scores[number]] for number in numbers]
        self.left = Counter(sample.index for samples in pending for sample in samples)
        needed = [sample for sample in self.samples if self.taps or self.left[sample.index]]
        jobs = jobs_of(self.model, [needed, *pending])
        plans = PlansByBlock(model=self.model, weights=self.weights, plans=[self.plans[number] for number in numbers])
        taps: dict[int | None, dict[str, Callable[[int, Tensor], None]]] = defaultdict(dict)
        for path, take in self.taps.items():
            taps[self.weights.index_of(path)][path] = take

        @contextmanager
        def patched(job: Job, block: int | None) -> Iterator[None]:
            with plans.applied(job.variant - 1 if job.variant else None, block), ExitStack() as stack:
                if job.variant == 0 and block is not None:
                    stack.enter_context(module_inputs(self.model, _of_sample(taps[block], job.sample)))
                if block is not None and (path := self.weights.blocks[block]) in self.blocks:
                    index = self.blocks.index(path)
                    stack.enter_context(block_outputs(self.model, [path], lambda _, h: self._passed(job, index, h)))
                yield

        def run(job: Job) -> None:
            self._finish(job, None if job.variant == 0 else numbers[job.variant - 1], forward(self.model, job.batch)[0])

        with plans.entered():
            progress = shared_progress(progress, jobs, self.weights)
            run_side_by_side(self.model, self.weights, jobs, run, patched, progress)

    def _passed(self, job: Job, index: int, h: Tensor) -> None:
        """A job has left a block of which drift is recorded."""
        if job.variant == 0:
            self.hidden[job.sample.index] = index, Hidden.of(h)
            return
        at, clean = self.hidden[job.sample.index]
        if at == index:
            self.drifts[job.variant, job.sample.index][index] = clean.drift(h)

    def _finish(self, job: Job, number: int | None, logits: Tensor) -> None:
        """Logits of a job are there. number: of its plan."""
        index = job.sample.index
        if number is None:
            if self.left[index]:
                self.clean[index] = clean_of(job.sample, logits, {}, self.scratch)
            return
        drifts = self.drifts.pop((job.variant, index), {})
        score = compared(self.clean[index], logits, drifts, len(self.blocks), self.scratch)
        self.finished.add(number, score)
        self.left[index] -= 1
        if not self.left[index]:
            del self.clean[index]


def _of_sample(taps: Taps, sample: TokenizedSample) -> dict[str, Callable[[Tensor], None]]:
    """By module path, what takes its input while this sample runs."""
    return {path: partial(take, sample.index) for path, take in taps.items()}


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


def _clean(
    model: nn.Module, samples: Sequence[TokenizedSample], blocks: Sequence[str], taps: Taps = _NOTHING
) -> Iterator[Clean]:
    scratch = Scratch()
    for sample in samples:
        hidden: dict[int, Hidden] = {}
        with (
            module_inputs(model, _of_sample(taps, sample)),
            block_outputs(model, blocks, lambda index, h, kept=hidden: kept.update({index: Hidden.of(h)})),
        ):
            logits = logits_of(model, sample)
        yield clean_of(sample, logits, hidden, scratch)
        del logits  # before the next sample's are computed


def clean_of(sample: TokenizedSample, logits: Tensor, hidden: Mapping[int, Hidden], scratch: Scratch) -> Clean:
    """What a sample's logits, [tokens, vocabulary], are compared by. hidden: by index, outputs of blocks.

    Raises MeasurementError where they are not one row for each token, as those of models that denoise a block of text.
    """
    if len(logits) != len(sample.ids):
        raise MeasurementError(
            f"its logits have {len(logits):,} rows for {len(sample.ids):,} tokens: it predicts no next token, so that "
            "there is no KL",
            where=f"sample {sample.id}",
            hint="`quantaudit measure` and `quantaudit scales` work without",
        )
    stats = token_stats(logits, _targets(sample, logits), scratch)
    return Clean(sample=sample, logits=logits, stats=stats, hidden=hidden)


def _scores(
    model: nn.Module, clean: Sequence[Clean], blocks: Sequence[str], scratch: Scratch, progress: Advance
) -> Iterator[SampleScore]:
    for base in clean:
        yield _score(model, base, blocks, scratch)
        progress()


def _score(model: nn.Module, base: Clean, blocks: Sequence[str], scratch: Scratch) -> SampleScore:
    """The score of one sample under the model in its present state."""
    with drifts_of(model, blocks, base.hidden) as drifts:
        logits = logits_of(model, base.sample)
    return compared(base, logits, drifts, len(blocks), scratch)


def compared(base: Clean, logits: Tensor, drifts: Mapping[int, Tensor], blocks: int, scratch: Scratch) -> SampleScore:
    """The score of one sample from its logits, and drifts by index of the block."""
    stats, kl = compare(base.logits, base.stats, logits, _targets(base.sample, logits), scratch)
    return SampleScore(
        sample=base.sample,
        kl=kl.double().cpu().numpy(),
        agreed=(stats.top == base.stats.top).cpu().numpy(),
        confident=confident(base.logits, base.stats).cpu().numpy(),
        loss=stats.loss.double().cpu().numpy(),
        loss_base=base.stats.loss.double().cpu().numpy(),
        drift=np.array([float(drifts[index]) if index in drifts else np.nan for index in range(blocks)]),
    )


def _targets(sample: TokenizedSample, logits: Tensor) -> Tensor:
    return torch.from_numpy(sample.ids[1:]).to(logits.device)


def logits_of(model: nn.Module, sample: TokenizedSample) -> Tensor:
    """Logits [tokens, vocabulary] in the model's dtype."""
    (batch,) = batches([sample], device=next(model.parameters()).device)
    return forward(model, batch)[0]


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
