"""Fisher information by sampling: labels drawn from the model's predictions, and the backward pass from them.

To second order, KL(p‖q) of the logits is ½·δᵀFδ, with F the Fisher information of the model's predictions. Score
gradients of sampled labels (`sampled_score_gradients`) have covariance F; backpropagated, they give g = ∂/∂h of any
tensor h on the way, and ½·(g·Δh)² is the KL of changing it by Δh, on average over draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from quantaudit.model.forward.batches import Batch, arguments
from quantaudit.model.forward.hooks import replace_outputs
from quantaudit.simulate.logits.kl import slice_rows

_STRETCH = 512
"""Tokens of the vocabulary whose probabilities are summed before any is looked for."""


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Within the context the embedding's output starts a graph, in evaluation mode, and no parameter has a gradient."""
    training = {module: module.training for module in model.modules()}
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    with ExitStack() as stack:
        stack.callback(_restore, training, trained)
        model.eval().requires_grad_(False)
        # A clone is no leaf: the model may scale its embeddings in place.
        graph_start = replace_outputs(embedding, lambda _m, _a, _k, output: output.detach().requires_grad_().clone())
        stack.enter_context(graph_start)
        yield


def backward(model: Any, batch: Batch, recorders: ExitStack, draws: int, generator: torch.Generator) -> None:
    """One forward pass, and one backward pass for each draw. To be called within `differentiable`.

    recorders: hooks of the forward pass, closed before the backward pass, on which checkpointed blocks run once more.
    """
    with torch.enable_grad(), recorders:
        logits = logits_with_graph(model, batch)
    edge, values = get_gradient_edge(logits), logits.detach()
    del logits
    for draw in range(draws):
        gradients, last = sampled_score_gradients(values, generator), draw + 1 == draws
        if last:
            del values  # a large vocabulary's logits take as much as the rest of the graph
        torch.autograd.backward([edge], [gradients], retain_graph=not last)


def logits_with_graph(model: Any, batch: Batch) -> Tensor:
    """Logits of a forward pass whose graph begins at embeddings and pixels. To be called where gradients are on."""
    inputs = arguments(model, batch)
    for value in inputs.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            value.requires_grad_()  # pixels: a vision tower lies before the embeddings that start the graph
    logits: Tensor = model(**inputs).logits
    return logits


def sampled_score_gradients(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Gradients, with respect to the logits, of the negative log-likelihood of labels drawn from the logits themselves.

    logits: [..., vocabulary]. Computed in float32, returned in the logits' dtype; the mean is 0, the covariance the
    Fisher information diag(p) − ppᵀ of each position, in nats. NaN where the logits are broken.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    gradients = torch.empty_like(rows)
    u = _uniform(len(rows), generator)
    size = slice_rows(rows.shape[-1], rows.device)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        p = rows[part].float().softmax(-1)
        gradients[part] = p.scatter_add_(-1, sample_labels(p, u[part]), -torch.ones_like(p[:, :1]))
    return gradients.view_as(logits)


def label_states(tokens: Sequence[int], draws: int, generator: torch.Generator) -> list[Tensor]:
    """Where a generator is before labels are drawn for each of several samples, which may then come in any order.

    tokens: of each sample.
    """
    states = []
    for count in tokens:
        states.append(generator.get_state())
        for _ in range(draws):
            _uniform(count, generator)
    return states


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 1, generator=generator, device=generator.device, dtype=torch.float64)


def sample_labels(p: Tensor, u: Tensor) -> Tensor:
    """One label for each row of p, float32 [rows, vocabulary], with these probabilities: int64 [rows, 1].

    u: float64 [rows, 1], uniform in [0, 1). By inversion in float64, first among stretches of the vocabulary, then
    within one: `torch.multinomial` draws a random number for every token, and one cumulative sum over all of them takes
    longer than the forward pass of a small model.
    """
    rows, vocabulary = p.shape
    stretches = nn.functional.pad(p, (0, -vocabulary % _STRETCH)).view(rows, -1, _STRETCH)
    sums = stretches.sum(-1, dtype=torch.float64)
    ends = sums.cumsum(-1)
    target = u * ends[:, -1:]
    chosen = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    before = (ends - sums).gather(1, chosen)
    within = stretches.gather(1, chosen[:, :, None].expand(-1, -1, _STRETCH))[:, 0].double().cumsum(-1) + before
    inside = torch.searchsorted(within, target, right=True).clamp_(max=_STRETCH - 1)
    return (chosen * _STRETCH + inside).clamp_(max=vocabulary - 1)


def _restore(training: Mapping[nn.Module, bool], trained: Mapping[nn.Parameter, bool]) -> None:
    for module, mode in training.items():
        module.training = mode
    for parameter, flag in trained.items():
        parameter.requires_grad_(flag)
