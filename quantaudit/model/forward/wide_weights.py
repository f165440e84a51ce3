"""Float32 copies of 16-bit weights, kept within a budget while the weights stay what they were."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

PATIENCE = 4
"""A copy makes room for another once it was passed over by this many times as many look-ups as there are copies. A
model whose weights do not all fit would otherwise drop each of them shortly before it is due again."""


@dataclass(slots=True)
class _Copy:
    """A float32 copy of one block of memory. storage: the reference keeps its address from being used again. version:
    of the tensor that was copied. used: at which look-up.
    """

    storage: StorageWeakRef
    version: int
    wide: Tensor
    used: int


class WideWeights:
    """Copies by block of memory: (storage, offset, length). budget: bytes of all copies; 0 keeps none.

    A block is the same as long as its storage lives and PyTorch has counted no write to it. Writes through `.data` are
    not counted: whoever makes them sets the budget to 0.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._copies: OrderedDict[tuple[int, int, int], _Copy] = OrderedDict()
        self._bytes = 0
        self._clock = 0
        self._lock = threading.Lock()
        self._scratch = threading.local()

    @property
    def budget(self) -> int:
        """Bytes of all copies."""
        return self._budget

    @budget.setter
    def budget(self, size: int) -> None:
        with self._lock:
            self._budget = size
            while self._copies and self._bytes > size:
                self._drop(next(iter(self._copies)))

    @property
    def bytes(self) -> int:
        """Memory of the copies that are kept."""
        return self._bytes

    def of(self, weight: Tensor) -> Tensor:
        """The same numbers in float32, to be read only, and only until this thread asks for others.

        weight: of any shape. Where it has no gaps in memory, the strides are the same however the result came about,
        and so are the roundings of what is computed with it.
        """
        if not (weight.is_contiguous() or (weight.ndim == 2 and weight.t().is_contiguous())):
            return weight.float()
        if self._budget and is_parameter(weight):
            with self._lock:
                kept = self._kept(weight)
            if kept is not None:
                return kept.as_strided(weight.shape, weight.stride(), 0)
        return self._passing(weight)

    def _passing(self, weight: Tensor) -> Tensor:
        """In memory that this thread uses again: fresh pages for every weight cost more than its conversion."""
        size = weight.numel()
        buffer: Tensor | None = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.numel() < size:
            buffer = self._scratch.buffer = torch.empty(size, dtype=torch.float32)
        return buffer.as_strided(weight.shape, weight.stride(), 0).copy_(weight)

    def _kept(self, weight: Tensor) -> Tensor | None:
        """The copy of this weight, made now if there is room; None where there is none."""
        storage = weight.untyped_storage()
        key = (int(storage._cdata), int(weight.storage_offset()), weight.numel())
        self._clock += 1
        copy = self._copies.get(key)
        if copy is not None and copy.version == weight._version:
            copy.used = self._clock
            self._copies.move_to_end(key)
            return copy.wide
        if copy is not None:
            self._drop(key)
        size = 4 * weight.numel()
        if not self._room(size):
            return None
        flat = weight.as_strided((weight.numel(),), (1,), weight.storage_offset())
        wide = flat.float()
        self._copies[key] = _Copy(_weak_reference(storage), weight._version, wide, self._clock)
        self._bytes += size
        return wide

    def _room(self, size: int) -> bool:
        """Make room: first what no longer lives, then what has long not been used. False where that is not enough."""
        if self._bytes + size <= self._budget:
            return True
        for key in [key for key, copy in self._copies.items() if _is_gone(copy)]:
            self._drop(key)
        while self._copies and self._bytes + size > self._budget:
            key, oldest = next(iter(self._copies.items()))
            if self._clock - oldest.used <= PATIENCE * len(self._copies):
                return False
            self._drop(key)
        return self._bytes + size <= self._budget

    def _drop(self, key: tuple[int, int, int]) -> None:
        self._bytes -= self._copies.pop(key).wide.nbytes


def _weak_reference(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _is_gone(copy: _Copy) -> bool:
    return bool(copy.storage.expired())  # type: ignore[no-untyped-call]


def is_parameter(weight: Tensor) -> bool:
    """Whether it is a parameter or a view of one; others, such as keys and values, are not the same again."""
    base = weight._base
    return isinstance(weight if base is None else base, nn.Parameter) and not weight.is_inference()
