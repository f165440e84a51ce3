"""Which sample, position and token each row of a tensor is, and which rows are padding: made once for each batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
SPLITS = 2
"""A sample's split is 0 or 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the rows of a batch's tensors are.

    segment: int64 [rows], which of the batch's samples, −1 at padding; position: in the sample; token: its id.
    sample, split: int64 [samples], the index of every sample of the batch, in any order, and its split, 0 or 1.
    splits: those that occur. Arrays are C-contiguous.
    """

    segment: Ints
    position: Ints
    token: Ints
    sample: Ints
    split: Ints
    splits: tuple[int, ...] = field(init=False)
    _devices: dict[torch.device, DeviceLabels] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", tuple(sorted(set(self.split.tolist()))))

    def on(self, device: torch.device) -> DeviceLabels:
        """The same on a device; copied there once."""
        if device not in self._devices:
            self._devices[device] = DeviceLabels.of(self, device)
        return self._devices[device]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLabels:
    """Labels as tensors. segment: the number of samples stands for padding.

    order: int64 [rows], the rank of a row by its sample's index and its position; unique among rows that count.
    """

    segment: Tensor
    position: Tensor
    token: Tensor
    order: Tensor
    sample: Tensor
    split: Tensor

    @classmethod
    def of(cls, labels: Labels, device: torch.device) -> DeviceLabels:
        """Copied to the device."""
        segments = len(labels.sample)
        segment = np.where(labels.segment < 0, segments, labels.segment)
        # Padding has the split 2, behind the last.
        sample, split = np.append(labels.sample, -1), np.append(labels.split, SPLITS)
        rank = np.argsort(np.argsort(sample, kind="stable"), kind="stable")
        order = rank[segment] * (int(labels.position.max(initial=0)) + 1) + np.maximum(labels.position, 0)
        arrays = (segment, labels.position, labels.token, order, sample, split)
        names = ("segment", "position", "token", "order", "sample", "split")
        return cls(**{name: torch.from_numpy(a).to(device) for name, a in zip(names, arrays, strict=True)})


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows that are some of the batch's tokens. tokens: int64 [rows], which (None: row i is token i); valid: bool
    [rows], those that count (None: all). Both on the tensor's device.
    """

    tokens: Tensor | None = None
    valid: Tensor | None = None


ALL = Chosen()
