"""Fused attention of 16-bit tensors with products in float32, rounded where the fused kernels round."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 256
"""Queries at a time: under a causal mask, later keys are left out."""


def rounded_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention [batch, heads, queries, channels] in the dtype of q, and the float32 logsumexp [batch, heads, queries].

    k, v: [batch, heads or a divisor of them, keys, channels]. mask: added, or boolean, broadcast to queries by keys.
    causal: query i sees keys up to i. Scores, exponentials and sums are float32. exp(score − maximum) is rounded to the
    dtype before it is multiplied with v, as in PyTorch's kernels for processors (`FlashAttentionKernel.cpp`) and in
    FlashAttention; the result once more. Queries that see no key give 0.
    """
    batch, heads, queries, _ = q.shape
    keys, scale = k.shape[2], q.shape[-1] ** -0.5 if scale is None else scale
    shared = heads // k.shape[1]
    k_wide, v_wide = (x.repeat_interleave(shared, 1).float() if shared > 1 else x.float() for x in (k, v))
    # Laid out as the fused kernels do: heads last but one, so that joining them copies nothing.
    out = q.new_empty((batch, queries, heads, v.shape[-1])).transpose(1, 2)
    sums = q.new_empty((batch, queries, heads), dtype=torch.float32).transpose(1, 2)
    for start in range(0, queries, ROWS):
        rows = slice(start, min(start + ROWS, queries))
        end = min(rows.stop, keys) if causal else keys
        scores = (q[:, :, rows].float() @ k_wide[:, :, :end].mT).mul_(scale)
        if mask is not None:
            part = mask.expand(*mask.shape[:-2], queries, keys)[..., rows, :end]
            scores = scores.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else scores.add_(part)
        if causal:
            late = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(start + 1)
            scores.masked_fill_(late, -torch.inf)
        top = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(torch.float32).min)
        p = scores.sub_(top).exp_()
        total = p.sum(-1, keepdim=True)
        weighted = p.to(q.dtype).float() @ v_wide[:, :, :end]
        out[:, :, rows] = weighted.div_(total.clamp_min(torch.finfo(torch.float32).tiny))
        sums[:, :, rows] = total.log().add_(top)[..., 0]
    return out, sums
