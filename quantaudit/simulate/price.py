"""The price list: the logits KL that quantizing each fused group alone would cost, estimated from one backward pass.

To second order, KL(p‖q) of the logits is ½·δᵀFδ, with F the Fisher information of the model's own predictions. Scores
drawn from them (`predicted_scores`) have covariance F; backpropagated, they give g = ∂/∂y at every Linear's output.
Quantizing a group changes that output by Δy, and its price in nats is

    ½ · Σ over tokens of (Σ over members and channels of g·Δy)², averaged over draws.

Members are summed inside the token before squaring: they change together, by errors of one shared input, and their
effects on the logits add or cancel. Tokens are squared apart: what they do to the logits is taken for uncorrelated.
Only Δy depends on the scheme, so that all schemes are priced in one pass; small KLs add up over groups, so prices do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.capture import first_tensor
from quantaudit.model.drive import arguments, batches
from quantaudit.model.sites import Group
from quantaudit.progress import Advance, no_advance
from quantaudit.quant.scales import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.quant.weights import upright
from quantaudit.simulate.apply import input_quantizer, quantize_weight
from quantaudit.simulate.forwards import checkpointed

RECORD_BYTES = 1 << 29
"""Inputs and gradients kept at once; a larger evaluation runs in several rounds, each quantizing weights anew."""

_ROWS = 32

PriceList = dict[tuple[str, str], float | None]
"""(group name, scheme name) → nats per token; None without a finite range, or where no finite gradient came."""


_NOTHING: Mapping[str, Mapping[str, Tensor]] = {}


@dataclass(slots=True)
class Read:
    """One tensor that Linears of a group read, and what the loss feels at their outputs.

    x: [..., in], in the model's dtype. gradients: by member, one [..., out] for each draw, in the model's dtype.
    """

    x: Tensor
    gradients: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


Reads = dict[str, list[Read]]
"""By group name, one entry for every tensor that it read."""


def price_groups(
    model: nn.Module,
    groups: Sequence[Group],
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    *,
    factors: Mapping[str, Mapping[str, Tensor]] = _NOTHING,
    blocks: Sequence[str] = (),
    draws: int = 1,
    seed: int = 0,
    progress: Advance = no_advance,
) -> PriceList:
    """Price of every group under every scheme, in nats per token.

    qparams: by scheme name, then by group name, for static schemes. factors: the same, [in], where a group is smoothed
    first: its input is divided by them, the columns of its weights multiplied. blocks: paths of the decoder blocks
    whose graphs are kept one at a time. draws: backward passes averaged for each sample. Gradients have the model's
    dtype (scores are computed in float32 and rounded once), sums are float64; in float16 very small gradients
    underflow. Memory: one block's graph for one sample, and RECORD_BYTES. The model is left as it was.
    `progress` is called after each sample.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    totals: dict[tuple[str, str], float] = defaultdict(float)
    tokens = sum(len(sample.ids) for sample in samples)
    rounds: Reads = defaultdict(list)
    held = 0
    with differentiable(model), checkpointed(model, blocks):
        for sample in samples:
            reads = record(model, groups, sample, draws, generator)
            for name, found in reads.items():
                rounds[name] += found
            held += sum(_size(read) for found in reads.values() for read in found)
            if held > RECORD_BYTES:
                _add(totals, model, groups, rounds, schemes, qparams, factors)
                held = 0
            progress()
        _add(totals, model, groups, rounds, schemes, qparams, factors)
    return {
        (group.name, scheme.name): _mean(totals.get((group.name, scheme.name)), tokens * draws)
        for group in groups
        for scheme in schemes
    }


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Within the context the embedding's output starts a graph, in evaluation mode, and no parameter has a gradient."""
    training = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    with ExitStack() as stack:
        stack.callback(_restore, training, wanted)
        model.eval().requires_grad_(False)
        # A clone is no leaf: the model may scale its embeddings in place.
        handle = embedding.register_forward_hook(lambda _m, _a, output: output.detach().requires_grad_().clone())
        stack.callback(handle.remove)
        yield


def record(
    model: nn.Module, groups: Sequence[Group], sample: TokenizedSample, draws: int, generator: torch.Generator
) -> Reads:
    """Inputs of all groups and gradients at the outputs of their Linears, for one sample. Within `differentiable`."""
    reads: Reads = defaultdict(list)
    with torch.enable_grad():
        (batch,) = batches([sample], 1, pad=0, device=generator.device)
        given = arguments(model, batch)
        for value in given.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.requires_grad_()  # pixels: a vision tower lies before the embeddings that start the graph
        # Gone before the way back, on which checkpointed blocks run once more.
        with ExitStack() as stack:
            for group in groups:
                for member in group.members:
                    hook = _recorder(reads[group.name], member)
                    stack.callback(model.get_submodule(member).register_forward_hook(hook, with_kwargs=True).remove)
            logits = model(**given).logits
        for draw in range(draws):
            scores = predicted_scores(logits.detach(), generator)
            logits.backward(scores, retain_graph=draw + 1 < draws)
    return reads


def predicted_scores(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Gradients, with respect to the logits, of the negative log-likelihood of labels drawn from the logits themselves.

    logits: [..., vocabulary]. Computed in float32, returned in the logits' dtype; the mean is 0, the covariance the
    Fisher information diag(p) − ppᵀ of each position, in nats. NaN where the logits are broken.
    """
    p = logits.float().softmax(-1)
    if not bool(p.isfinite().all()):
        return torch.full_like(logits, float("nan"))
    labels = drawn_labels(p.flatten(0, -2), generator).view(*p.shape[:-1], 1)
    return p.scatter_add(-1, labels, -torch.ones_like(p[..., :1])).to(logits.dtype)


def drawn_labels(p: Tensor, generator: torch.Generator) -> Tensor:
    """One label for each row of p, float32 [rows, vocabulary], with these probabilities: int64 [rows].

    By inversion in float64, a few rows at a time: `torch.multinomial` draws a random number for every token of the
    vocabulary, which takes longer than a forward pass of a small model.
    """
    u = torch.rand(len(p), 1, generator=generator, device=p.device, dtype=torch.float64)
    labels = []
    for start in range(0, len(p), _ROWS):
        cumulative = p[start : start + _ROWS].double().cumsum(-1)
        labels.append(torch.searchsorted(cumulative, u[start : start + _ROWS] * cumulative[:, -1:], right=True))
    return torch.cat(labels)[:, 0].clamp_(max=p.shape[-1] - 1)


@torch.no_grad()
def price_reads(
    reads: Iterable[Read],
    weights: Mapping[str, Tensor],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, QParams | None],
) -> dict[str, float]:
    """Σ over tokens and draws of ½·(Σ g·Δy)² by scheme name, for one group.

    Schemes without a range are left out, and all of them where no gradient ever came.

    weights: by member, [out, in]. qparams: by scheme name. Δy = x̂Ŵᵀ − xWᵀ is never formed: with Δx = x̂ − x and
    ΔW = Ŵ − W, g·Δy = gW·Δx + gΔW·x̂, whose products with g serve all schemes of the same weights.
    """
    heard = [read for read in reads if read.gradients]
    usable = [scheme for scheme in schemes if heard and (not scheme.static or qparams.get(scheme.name) is not None)]
    changes = {
        str(scheme.weights): {
            member: quantize_weight(weight, scheme.weights) - weight for member, weight in weights.items()
        }
        for scheme in usable
        if scheme.weights is not None
    }
    totals = dict.fromkeys((scheme.name for scheme in usable), 0.0)
    for read in heard:
        x, pulled = read.x.float(), _pull(read, weights)
        shifted = {key: _pull(read, change) for key, change in changes.items()}
        for scheme in usable:
            quantizer = input_quantizer(scheme, qparams.get(scheme.name), x.device)
            restored = x if quantizer is None else quantizer(read.x).float()
            felt = torch.zeros(pulled.shape[:-1], dtype=torch.float64, device=x.device)
            if scheme.weights is not None:
                felt += torch.linalg.vecdot(shifted[str(scheme.weights)], restored)
            if quantizer is not None:
                felt += torch.linalg.vecdot(pulled, restored - x)
            totals[scheme.name] += 0.5 * float(felt.square().sum())
    return totals


def _pull(read: Read, matrices: Mapping[str, Tensor]) -> Tensor:
    """Σ over members of g·M: float32 [draws, ..., in], how the scores feel a change along each input channel."""
    pulled = [torch.stack(gradients) @ matrices[member] for member, gradients in read.gradients.items()]
    return torch.stack([product.float() for product in pulled]).sum(0)


def _recorder(reads: list[Read], member: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not output.requires_grad:
            return
        x = first_tensor((*args, *kwargs.values())).detach()
        # Members that read one tensor share an entry; experts, which see different tokens, do not.
        read = next((read for read in reads if read.x.data_ptr() == x.data_ptr() and read.x.shape == x.shape), None)
        if read is None:
            read = Read(x)
            reads.append(read)
        output.register_hook(lambda gradient: read.gradients[member].append(gradient.detach()))  # type: ignore[no-untyped-call]

    return hook


def _add(
    totals: dict[tuple[str, str], float],
    model: nn.Module,
    groups: Sequence[Group],
    rounds: Reads,
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    factors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Price what was recorded, group by group, and forget it."""
    for group in groups:
        weights = {member: upright(model.get_submodule(member)).detach() for member in group.members}
        ranges = {scheme.name: qparams.get(scheme.name, {}).get(group.name) for scheme in schemes}
        reads = rounds.pop(group.name, [])
        alike: dict[int, list[Scheme]] = {}
        own = {scheme.name: factors.get(scheme.name, {}).get(group.name) for scheme in schemes}
        for scheme in schemes:
            alike.setdefault(id(own[scheme.name]), []).append(scheme)
        for some in alike.values():
            read, matrices = _smoothed(reads, weights, own[some[0].name])
            for name, total in price_reads(read, matrices, some, ranges).items():
                totals[group.name, name] += total


def _smoothed(
    reads: Sequence[Read], weights: Mapping[str, Tensor], factor: Tensor | None
) -> tuple[Sequence[Read], Mapping[str, Tensor]]:
    """The same product of other inputs x/s and weights W·s; as they are without a factor s [in]."""
    if factor is None:
        return reads, weights
    return (
        [Read((read.x / factor).to(read.x.dtype), read.gradients) for read in reads],
        {member: (weight * factor).to(weight.dtype) for member, weight in weights.items()},
    )


def _size(read: Read) -> int:
    return sum(tensor.nbytes for tensor in [read.x, *(g for found in read.gradients.values() for g in found)])


def _mean(total: float | None, count: int) -> float | None:
    mean = float("nan") if total is None else total / count
    return mean if mean < float("inf") else None


def _restore(training: Mapping[nn.Module, bool], wanted: Mapping[nn.Parameter, bool]) -> None:
    for module, mode in training.items():
        module.training = mode
    for parameter, flag in wanted.items():
        parameter.requires_grad_(flag)
