"""The whole model under a recipe: logits KL to the unquantized model, top-1 agreement, perplexity before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.drive import batches, forward
from quantaudit.model.sites import Group
from quantaudit.progress import Advance, no_advance
from quantaudit.quant.scales import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.apply import input_quantizer, quantize_linear, quantized
from quantaudit.simulate.records import DomainScore, RecipeRow

LOGIT_BYTES = 1 << 28
"""Unquantized logits kept at once, at most; a larger evaluation runs in several rounds."""
_SLICE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe resolved on a model: which scheme each fused group gets. qparams: by group name, for static schemes."""

    name: str
    title: str
    schemes: Mapping[str, Scheme]
    qparams: Mapping[str, QParams | None]

    @property
    def unscaled(self) -> list[str]:
        """Groups that need a static range and have none that is finite."""
        return [name for name, scheme in self.schemes.items() if scheme.static and self.qparams.get(name) is None]


@dataclass(slots=True)
class _Score:
    """Sums over one sample's positions."""

    domain: str
    tokens: int = 0
    predicted: int = 0
    kl: float = 0.0
    agreed: float = 0.0
    loss: float = 0.0
    loss_base: float = 0.0


@dataclass(slots=True)
class _Weights:
    """Fake-quantized weights of the last plan, kept while the next one quantizes them alike."""

    key: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def of(self, model: nn.Module, groups: Sequence[Group], plan: Plan) -> dict[str, Tensor]:
        """Module path → weight [out, in] for every member of `groups` whose scheme quantizes weights."""
        wanted: dict[str, QuantizationArgs] = {
            member: args
            for group in groups
            for member in group.members
            if (args := plan.schemes[group.name].weights) is not None
        }
        key = {member: str(args) for member, args in wanted.items()}
        if key != self.key:
            self.tensors = {}
            self.tensors = {
                member: quantize_linear(model.get_submodule(member), args) for member, args in wanted.items()
            }
            self.key = key
        return self.tensors


@torch.no_grad()
def score_plans(
    model: nn.Module,
    groups: Sequence[Group],
    samples: Sequence[TokenizedSample],
    plans: Sequence[Plan],
    progress: Advance = no_advance,
) -> list[RecipeRow]:
    """Run the model as it is and under every plan, on the same tokens.

    `progress` is called after each sample and plan.
    """
    scores: list[list[_Score]] = [[] for _ in plans]
    weights = _Weights()
    config: Any = model.config
    bytes_per_token = config.get_text_config().vocab_size * next(model.parameters()).element_size()
    for chunk in _chunks(samples, LOGIT_BYTES // bytes_per_token):
        base = list(_logits(model, chunk))
        for plan, found in zip(plans, scores, strict=True):
            chosen = [group for group in groups if group.name in plan.schemes and group.name not in plan.unscaled]
            inputs = {
                group.name: input_quantizer(plan.schemes[group.name], plan.qparams.get(group.name), base[0][1].device)
                for group in chosen
            }
            with quantized(model, chosen, weights.of(model, chosen, plan), inputs):
                for (sample, clean), (_, changed) in zip(base, _logits(model, chunk), strict=True):
                    found.append(_compare(sample, clean, changed))
                    progress()
    return [_row(plan, found) for plan, found in zip(plans, scores, strict=True)]


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q), nats, from log-probabilities. p, q: float32 [tokens, vocabulary]; returns float32 [tokens]."""
    return (p.exp() * (p - q)).sum(-1)


def _logits(model: nn.Module, samples: Sequence[TokenizedSample]) -> Iterator[tuple[TokenizedSample, Tensor]]:
    """(sample, logits [tokens, vocabulary] in the model's dtype), one sample at a time."""
    device = next(model.parameters()).device
    for batch in batches(samples, 1, pad=0, device=device):
        yield batch.samples[0], forward(model, batch)[0]


def _chunks(samples: Sequence[TokenizedSample], tokens: int) -> Iterator[list[TokenizedSample]]:
    chunk: list[TokenizedSample] = []
    for sample in samples:
        if chunk and sum(len(s.ids) for s in chunk) + len(sample.ids) > tokens:
            yield chunk
            chunk = []
        chunk.append(sample)
    if chunk:
        yield chunk


def _compare(sample: TokenizedSample, clean: Tensor, changed: Tensor) -> _Score:
    score = _Score(domain=sample.domain, tokens=len(sample.ids), predicted=len(sample.ids) - 1)
    targets = torch.from_numpy(sample.ids[1:]).to(clean.device)
    # In slices: float32 log-probabilities of a whole sample over a large vocabulary would need gigabytes.
    for start in range(0, len(sample.ids), _SLICE):
        p, q = (logits[start : start + _SLICE].float().log_softmax(-1) for logits in (clean, changed))
        score.kl += float(kl_divergence(p, q).sum(dtype=torch.float64))
        score.agreed += float((p.argmax(-1) == q.argmax(-1)).sum())
        following = targets[start : start + _SLICE, None]
        score.loss -= float(q[: len(following)].gather(1, following).sum(dtype=torch.float64))
        score.loss_base -= float(p[: len(following)].gather(1, following).sum(dtype=torch.float64))
    return score


def _row(plan: Plan, scores: Sequence[_Score]) -> RecipeRow:
    tokens = sum(score.tokens for score in scores)
    predicted = sum(score.predicted for score in scores)
    kl = sum(score.kl for score in scores) / tokens
    perplexities = [
        _exp(sum(losses) / predicted)
        for losses in ((score.loss for score in scores), (score.loss_base for score in scores))
    ]
    return RecipeRow(
        name=plan.name,
        title=plan.title,
        kl=kl,
        kl_stderr=_standard_error(scores, kl, tokens),
        top1=None if math.isnan(kl) else sum(score.agreed for score in scores) / tokens,
        perplexity=perplexities[0],
        perplexity_base=perplexities[1],
        tokens=tokens,
        samples=len(scores),
        nonfinite=not math.isfinite(kl) or bool(plan.unscaled),
        groups=len(plan.schemes),
        domains={domain: _domain(scores, domain) for domain in sorted({score.domain for score in scores})},
    )


def _standard_error(scores: Sequence[_Score], mean: float, tokens: int) -> float | None:
    """Standard error of a token-weighted mean over samples (ratio estimator); None for a single sample."""
    n = len(scores)
    if n < 2:
        return None
    spread = sum((score.kl - score.tokens * mean) ** 2 for score in scores)
    return math.sqrt(spread * n / (n - 1)) / tokens


def _domain(scores: Sequence[_Score], domain: str) -> DomainScore:
    own = [score for score in scores if score.domain == domain]
    tokens = sum(score.tokens for score in own)
    kl = sum(score.kl for score in own) / tokens
    top1 = None if math.isnan(kl) else sum(score.agreed for score in own) / tokens
    return DomainScore(tokens=tokens, kl=kl, top1=top1)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
