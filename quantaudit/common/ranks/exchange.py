"""Values that ranks send to each other: pickled, through gloo, from main memory to main memory.

Not through the default group of torch.distributed: llm-compressor and compressed-tensors, which work on the same model
in every rank here, would take its existence for a sign that they are to share that work themselves.
"""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LONGEST = timedelta(days=30)
"""Of one exchange: who waits relies on signs of life instead (`watch`)."""


class Exchange:
    """This rank's connections to all others. Every method raises RuntimeError where one is broken."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._group: Any = dist.ProcessGroupGloo(store, rank, size, LONGEST)

    def to_first(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on the first; nothing on the others."""
        if self._rank:
            data = _pickled(value)
            self._send(torch.tensor([len(data)]))
            self._send(data)
            return []
        values = [value]
        for other in range(1, self._size):
            count = self._receive(torch.empty(1, dtype=torch.int64), other)
            values.append(_unpickled(self._receive(torch.empty(int(count), dtype=torch.uint8), other)))
        return values

    def from_first(self, value: Any) -> Any:
        """The first rank's value, on all."""
        data = torch.empty(0, dtype=torch.uint8) if self._rank else _pickled(value)
        count = self._spread(torch.tensor([len(data)]))
        data = self._spread(torch.empty(int(count), dtype=torch.uint8) if self._rank else data)
        return _unpickled(data) if self._rank else value

    def _send(self, tensor: Tensor) -> None:
        self._group.send([tensor], 0, 0).wait()

    def _receive(self, tensor: Tensor, other: int) -> Tensor:
        self._group.recv([tensor], other, 0).wait()
        return tensor

    def _spread(self, tensor: Tensor) -> Tensor:
        self._group.broadcast([tensor], dist.BroadcastOptions()).wait()
        return tensor


def _pickled(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _unpickled(data: Tensor) -> Any:
    return pickle.loads(data.numpy().tobytes())
