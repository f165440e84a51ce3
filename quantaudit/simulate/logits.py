"""The whole model under a recipe: logits KL to the unquantized model, top-1 agreement, perplexity before and after.

In the same forwards, how far each decoder block's output has drifted with everything before it quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.capture import first_tensor
from quantaudit.model.drive import batches, forward
from quantaudit.progress import Advance, no_advance
from quantaudit.simulate.apply import quantized_modules
from quantaudit.simulate.block import block_damage
from quantaudit.simulate.plan import Plan, PlanWeights
from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.scores import SampleScore, recipe_row

KEPT_BYTES = 1 << 28
"""Unquantized logits and block outputs kept at once, at most; a larger evaluation runs in several rounds."""
SLICE_BYTES = 1 << 22
"""Float32 logits compared at once: a slice that stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Clean:
    """One sample as the unquantized model sees it.

    logits: [tokens, vocabulary] in the model's dtype; normalizer: float32 [tokens], their log-sum-exp; top: the most
    likely next token; loss: float64 [tokens − 1], nats; hidden: every block's output [1, tokens, hidden].
    """

    sample: TokenizedSample
    logits: Tensor
    normalizer: Tensor
    top: Tensor
    loss: NDArray[np.float64]
    hidden: list[Tensor]


@torch.no_grad()
def score_plans(
    model: nn.Module,
    samples: Sequence[TokenizedSample],
    plans: Sequence[Plan],
    *,
    blocks: Sequence[str] = (),
    progress: Advance = no_advance,
) -> list[RecipeRow]:
    """Run the model as it is and under every plan, on the same tokens.

    blocks: paths of the decoder blocks whose drift is wanted. `progress` is called after each sample and plan.
    """
    scores: list[list[SampleScore]] = [[] for _ in plans]
    weights = PlanWeights()
    device = next(model.parameters()).device
    for chunk in _chunks(samples, KEPT_BYTES // _bytes_per_token(model, len(blocks))):
        clean = list(_clean(model, chunk, blocks))
        for plan, found in zip(plans, scores, strict=True):
            with quantized_modules(model, weights.of(model, plan), plan.inputs(device)):
                for base in clean:
                    found.append(_score(model, base, blocks))
                    progress()
    return [recipe_row(plan, found) for plan, found in zip(plans, scores, strict=True)]


@torch.no_grad()
def score_checkpoint(
    model: nn.Module, other: nn.Module, samples: Sequence[TokenizedSample], plan: Plan, *, blocks: Sequence[str] = ()
) -> RecipeRow:
    """Run a model and another of the same architecture, such as a quantized checkpoint, on the same tokens.

    plan: what the other is said to be; it gives the row its names and is not applied.
    """
    scores: list[SampleScore] = []
    for chunk in _chunks(samples, KEPT_BYTES // _bytes_per_token(model, len(blocks))):
        scores += [_score(other, base, blocks) for base in _clean(model, chunk, blocks)]
    return recipe_row(plan, scores)


def divergence(p: Tensor, p_normalizer: Tensor, q: Tensor, q_normalizer: Tensor) -> Tensor:
    """KL(softmax p‖softmax q) in nats: float32 [tokens].

    p, q: float32 logits [tokens, vocabulary], p is overwritten; normalizers: their log-sum-exp. 0 for equal logits.
    """
    probability = (p - p_normalizer[:, None]).exp_()
    return probability.mul_(p.sub_(q)).sum(-1) - (p_normalizer - q_normalizer)


def _clean(model: nn.Module, samples: Sequence[TokenizedSample], blocks: Sequence[str]) -> Iterator[Clean]:
    for sample in samples:
        hidden: list[Tensor] = []
        with _block_outputs(model, blocks, lambda _index, h, kept=hidden: kept.append(h.clone())):
            logits = _logits(model, sample)
        normalizers, tops, losses = zip(
            *(_read(part, targets) for part, targets in _slices(sample, logits)), strict=True
        )
        yield Clean(
            sample=sample,
            logits=logits,
            normalizer=torch.cat(normalizers),
            top=torch.cat(tops),
            loss=torch.cat(losses).double().cpu().numpy(),
            hidden=hidden,
        )


def _score(model: nn.Module, base: Clean, blocks: Sequence[str]) -> SampleScore:
    """What the model, as it is now, makes of a sample."""
    with _drifts(model, blocks, base.hidden) as drifts:
        logits = _logits(model, base.sample)
    return _compare(base, logits, [float(drift) for drift in drifts])


def _compare(base: Clean, logits: Tensor, drift: list[float]) -> SampleScore:
    kls, agreed, losses = [], [], []
    start = 0
    for changed, targets in _slices(base.sample, logits):
        part = slice(start, start + len(changed))
        start = part.stop
        normalizer, top, loss = _read(changed, targets)
        kls.append(
            divergence(base.logits[part].to(torch.float32, copy=True), base.normalizer[part], changed, normalizer)
        )
        agreed.append(top == base.top[part])
        losses.append(loss)
    return SampleScore(
        sample=base.sample,
        kl=torch.cat(kls).double().cpu().numpy(),
        agreed=torch.cat(agreed).cpu().numpy(),
        loss=torch.cat(losses).double().cpu().numpy(),
        loss_base=base.loss,
        drift=np.array(drift),
    )


def _slices(sample: TokenizedSample, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(float32 logits, the tokens that follow) in slices: a whole sample's would need gigabytes.

    The last slice has a target less than positions.
    """
    targets = torch.from_numpy(sample.ids[1:]).to(logits.device)
    step = max(1, SLICE_BYTES // (4 * logits.shape[-1]))
    for start in range(0, len(logits), step):
        yield logits[start : start + step].float(), targets[start : start + step]


def _read(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp, most likely token, and the targets' negative log-likelihood, of float32 logits."""
    normalizer = logits.logsumexp(-1)
    known = logits[: len(targets)].gather(1, targets[:, None])[:, 0]
    return normalizer, logits.argmax(-1), normalizer[: len(targets)] - known


def _logits(model: nn.Module, sample: TokenizedSample) -> Tensor:
    """Logits [tokens, vocabulary] in the model's dtype."""
    (batch,) = batches([sample], 1, pad=0, device=next(model.parameters()).device)
    return forward(model, batch)[0]


@contextmanager
def _drifts(model: nn.Module, blocks: Sequence[str], clean: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Σ over tokens of each block's ‖Δh‖² / ‖h‖², filled in as the model runs."""
    found: list[Tensor] = []
    with _block_outputs(model, blocks, lambda index, h: found.append(block_damage(clean[index], h))):
        yield found


@contextmanager
def _block_outputs(model: nn.Module, blocks: Sequence[str], take: Any) -> Iterator[None]:
    """Within the context, `take` is called with each block's index and output."""
    with ExitStack() as stack:
        for index, path in enumerate(blocks):
            hook = lambda _module, _args, output, index=index: take(index, first_tensor(output))  # noqa: E731
            stack.callback(model.get_submodule(path).register_forward_hook(hook).remove)
        yield


def _bytes_per_token(model: nn.Module, blocks: int) -> int:
    config: Any = model.config
    text = config.get_text_config()
    return int((text.vocab_size + blocks * text.hidden_size) * next(model.parameters()).element_size())


def _chunks(samples: Sequence[TokenizedSample], tokens: int) -> Iterator[list[TokenizedSample]]:
    chunk: list[TokenizedSample] = []
    for sample in samples:
        if chunk and sum(len(s.ids) for s in chunk) + len(sample.ids) > tokens:
            yield chunk
            chunk = []
        chunk.append(sample)
    if chunk:
        yield chunk
