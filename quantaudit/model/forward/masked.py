"""A batch as other people's loops make it: an attention mask says which of its columns hold tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantaudit.model.forward.batches import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBatch(Batch):
    """A batch with a mask, bool [batch, longest], true where there is a token; samples[b] holds the ids in row b."""

    mask: Tensor

    def positions(self) -> Tensor:
        """Position of every column in its row's sample, −1 at padding: int64 [batch, longest], on the host."""
        mask = self.mask.cpu()
        return torch.where(mask, mask.cumsum(1) - 1, -1)
