"""Runs the forward passes: the whole model, batch by batch, padded on the right where samples differ in length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.model.routing import Routed

Share = tuple[TokenizedSample, Tensor, NDArray[np.int64] | None]
"""A sample, rows [tokens, channels] that belong to it, and their positions in it (None: from its start on)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """input_ids: int64 [batch, longest], padded on the right. Row b holds samples[b] in its first len(ids) columns."""

    samples: tuple[TokenizedSample, ...]
    input_ids: Tensor

    @property
    def tokens(self) -> int:
        """Valid tokens."""
        return sum(len(sample.ids) for sample in self.samples)

    @property
    def padded(self) -> bool:
        """Whether any row has padding."""
        return self.tokens < self.input_ids.numel()

    def shares(self, x_NC: Tensor, site: str) -> Iterator[Share]:
        """Each sample's valid rows of a tensor that has one row for every token, padding included.

        x_NC: [batch x longest, channels]. Raises MeasurementError where it has other rows.
        """
        if len(x_NC) != self.input_ids.numel():
            raise MeasurementError(f"has {len(x_NC)} rows for {self.input_ids.numel()} tokens", where=site)
        rows = x_NC.reshape(*self.input_ids.shape, x_NC.shape[-1])
        for x_TC, sample in zip(rows, self.samples, strict=True):
            yield sample, x_TC[: len(sample.ids)], None

    def routed(self, x_NC: Tensor, routed: Routed, site: str) -> Iterator[Share]:
        """Each sample's valid rows of an expert's tensor, with their positions in the sample.

        x_NC: [rows, channels]. Raises MeasurementError where its rows are not those of the expert's input.
        """
        if len(x_NC) != routed.count or routed.total != self.input_ids.numel():
            raise MeasurementError(
                f"has {len(x_NC)} rows of {routed.total} tokens, where {routed.count} rows of "
                f"{self.input_ids.numel()} tokens were routed",
                where=site,
            )
        x_KC = x_NC if routed.rows is None else x_NC[routed.rows]
        width = self.input_ids.shape[1]
        rows, positions = (routed.tokens // width).cpu(), (routed.tokens % width).cpu()
        for row, sample in enumerate(self.samples):
            mine = ((rows == row) & (positions < len(sample.ids))).nonzero()[:, 0]
            if len(mine):
                yield sample, x_KC[mine.to(x_KC.device)], positions[mine].numpy()


def batches(samples: Sequence[TokenizedSample], size: int, *, pad: int, device: torch.device) -> Iterator[Batch]:
    """Groups of `size` samples, of similar length so that little is computed on padding."""
    order = sorted(samples, key=lambda sample: (-len(sample.ids), sample.index))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        input_ids = torch.full((len(rows), len(rows[0].ids)), pad, dtype=torch.int64)
        for row, sample in enumerate(rows):
            input_ids[row, : len(sample.ids)] = torch.from_numpy(sample.ids)
        yield Batch(samples=tuple(rows), input_ids=input_ids.to(device))


@torch.no_grad()
def forward(model: nn.Module, batch: Batch) -> Tensor:
    """One forward pass without cache: logits [batch, longest, vocabulary]."""
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.padded:
        lengths = torch.tensor([len(sample.ids) for sample in batch.samples], device=batch.input_ids.device)
        columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        arguments["attention_mask"] = (columns < lengths[:, None]).long()
    logits: Tensor = model(**arguments).logits
    return logits


@contextmanager
def one_logit(model: nn.Module) -> Iterator[None]:
    """While this lasts, the output projection is computed for the last position only.

    Measuring needs what goes into it, not the logits: tapped before this context is entered, its whole input is seen,
    and a vocabulary's worth of work and memory for every token is saved.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _module, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()
