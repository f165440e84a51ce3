"""Two sets of logits over one vocabulary, compared token by token: KL, agreement, loss. In slices, and in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

SLICE_BYTES = 1 << 20
"""Float32 logits in one buffer: small enough to stay in a processor's cache."""
DEVICE_SLICE_BYTES = 1 << 26
"""The same on an accelerator, which has work to share out and no such cache."""


CONFIDENT = 0.5
"""Probability from which on a token is a model's clear choice: no other one can be more likely."""


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What is needed of each token's logits. normalizer: float32 [tokens], their log-sum-exp; top: int64 [tokens], the
    most likely token; loss: float32 [targets], nats, the negative log-likelihood of the tokens that do follow.
    """

    normalizer: Tensor
    top: Tensor
    loss: Tensor


@dataclass(slots=True)
class Scratch:
    """Float32 buffers [rows, vocabulary], reused: allocating them for every slice takes longer than the arithmetic."""

    buffers: list[Tensor] = field(default_factory=list)

    def views(self, logits: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """(positions, four buffers of as many rows) until all of logits [tokens, vocabulary] is covered."""
        rows = slice_rows(logits.shape[-1], logits.device)
        if not self.buffers or self.buffers[0].shape != (rows, logits.shape[-1]):
            self.buffers = [
                torch.empty(rows, logits.shape[-1], dtype=torch.float32, device=logits.device) for _ in range(4)
            ]
        for start in range(0, len(logits), rows):
            part = slice(start, min(start + rows, len(logits)))
            yield part, [buffer[: part.stop - start] for buffer in self.buffers]


def slice_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of a slice. A processor's threads get as many each, and one at least: of five, one of two would do three."""
    if device.type != "cpu":
        return max(1, DEVICE_SLICE_BYTES // (4 * vocabulary))
    rows, threads = SLICE_BYTES // (4 * vocabulary), torch.get_num_threads()
    return max(rows - rows % threads, threads)


def token_stats(logits: Tensor, targets: Tensor, scratch: Scratch) -> TokenStats:
    """Statistics of logits [tokens, vocabulary]. targets: int64, what follows the first positions, at most one each."""
    parts = [_token_stats(logits, targets, part, views[0], views[1]) for part, views in scratch.views(logits)]
    return _joined(parts)


def compare(
    clean: Tensor, clean_stats: TokenStats, changed: Tensor, targets: Tensor, scratch: Scratch
) -> tuple[TokenStats, Tensor]:
    """Statistics of the changed logits, and KL(softmax clean‖softmax changed) in nats, float32 [tokens].

    clean, changed: [tokens, vocabulary]; clean_stats: those of clean. With logits z and their log-sum-exp n,
    KL = Σ p·(z − z′) − (n − n′), which is exactly 0 for equal logits.
    """
    stats, divergences = [], []
    for part, (q, scored, p, probability) in scratch.views(changed):
        stats.append(_token_stats(changed, targets, part, q, scored))
        p.copy_(clean[part])
        torch.softmax(p, -1, out=probability)
        moved = torch.linalg.vecdot(probability, p.sub_(q))
        divergences.append(moved - (clean_stats.normalizer[part] - stats[-1].normalizer))
    return _joined(stats), torch.cat(divergences)


def confidence(logits: Tensor, stats: TokenStats) -> Tensor:
    """Probability of the most likely token: float32 [tokens]. stats: of these logits."""
    highest = logits.gather(1, stats.top[:, None])[:, 0].float()
    return (highest - stats.normalizer).exp()


def confident(logits: Tensor, stats: TokenStats) -> Tensor:
    """Whether the most likely token has a probability of one half or more: bool [tokens]. stats: of these logits."""
    return confidence(logits, stats) >= CONFIDENT


def _token_stats(logits: Tensor, targets: Tensor, part: slice, wide: Tensor, scored: Tensor) -> TokenStats:
    """One slice. wide is left with its logits in float32, scored with their log-probabilities."""
    wide.copy_(logits[part])
    torch.log_softmax(wide, -1, out=scored)
    following = targets[part]
    return TokenStats(
        normalizer=wide[:, 0] - scored[:, 0],
        top=wide.argmax(-1),
        loss=-scored[: len(following)].gather(1, following[:, None])[:, 0],
    )


def _joined(parts: list[TokenStats]) -> TokenStats:
    return TokenStats(
        normalizer=torch.cat([part.normalizer for part in parts]),
        top=torch.cat([part.top for part in parts]),
        loss=torch.cat([part.loss for part in parts]),
    )
