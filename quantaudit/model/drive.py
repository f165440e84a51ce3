"""Runs the forward passes: the whole model, batch by batch, padded on one side where samples differ in length."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.model.routing import Routed

Share = tuple[TokenizedSample, Tensor, NDArray[np.int64] | None]
"""A sample, rows [tokens, channels] that belong to it, and their positions in it (None: from its start on)."""


Side = Literal["left", "right"]
NO_TOKEN = -1
"""Stands for the token at rows of a vision tower: they are patches of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """input_ids: int64 [batch, longest], padded on one side: row b holds samples[b] in its first or last columns.

    inputs: what the model is given beside them, such as pixel_values, by argument; only for a batch of one sample.
    """

    samples: tuple[TokenizedSample, ...]
    input_ids: Tensor
    side: Side = "right"
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Valid tokens."""
        return sum(len(sample.ids) for sample in self.samples)

    @property
    def padded(self) -> bool:
        """Whether any row has padding."""
        return self.tokens < self.input_ids.numel()

    def columns(self, sample: TokenizedSample) -> slice:
        """Where a sample's tokens are in its row."""
        width, length = self.input_ids.shape[1], len(sample.ids)
        return slice(0, length) if self.side == "right" else slice(width - length, width)

    def valid(self, row: int) -> slice | Tensor:
        """What selects the tokens of samples[row] among the columns of its row."""
        return self.columns(self.samples[row])

    def positions(self) -> Tensor:
        """Position of every column in its row's sample, −1 at padding: int64 [batch, longest], on the host."""
        found = torch.full(self.input_ids.shape, -1, dtype=torch.int64)
        for row, sample in zip(found, self.samples, strict=True):
            row[self.columns(sample)] = torch.arange(len(sample.ids))
        return found

    def shares(self, x_NC: Tensor, site: str) -> Iterator[Share]:
        """Each sample's valid rows of a tensor that has one row for every token, padding included.

        x_NC: [batch x longest, channels]. Raises MeasurementError where it has other rows.
        """
        if len(x_NC) != self.input_ids.numel():
            raise MeasurementError(f"has {len(x_NC)} rows for {self.input_ids.numel()} tokens", where=site)
        rows = x_NC.reshape(*self.input_ids.shape, x_NC.shape[-1])
        for row, sample in enumerate(self.samples):
            if len(sample.ids):
                yield sample, rows[row, self.valid(row)], None

    def patches(self, x_NC: Tensor) -> Iterator[Share]:
        """All rows of a tensor on the way from pixels to tokens: it has an axis of its own, and one sample is alone.

        x_NC: [patches, channels], in the order in which the tower holds them.
        """
        yield self.samples[0], x_NC, None

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
        tokens = routed.tokens.cpu()
        rows, positions = tokens // self.input_ids.shape[1], self.positions().reshape(-1)[tokens]
        for row, sample in enumerate(self.samples):
            mine = ((rows == row) & (positions >= 0)).nonzero()[:, 0]
            if len(mine):
                yield sample, x_KC[mine.to(x_KC.device)], positions[mine].numpy()


def batches(
    samples: Sequence[TokenizedSample], size: int, *, pad: int, device: torch.device, side: Side = "right"
) -> Iterator[Batch]:
    """Groups of `size` samples, of similar length so that little is computed on padding.

    A sample with images is a batch of its own: models join images to text in ways that differ, and none pads them.
    """
    order = sorted(samples, key=lambda sample: (-len(sample.ids), sample.index))
    text = [sample for sample in order if sample.pictures is None]
    for start in range(0, len(text), size):
        rows = text[start : start + size]
        padded = Batch(samples=tuple(rows), input_ids=torch.full((len(rows), len(rows[0].ids)), pad), side=side)
        for row, sample in zip(padded.input_ids, rows, strict=True):
            row[padded.columns(sample)] = torch.from_numpy(sample.ids)
        yield replace(padded, input_ids=padded.input_ids.to(device))
    for sample in order:
        if sample.pictures is not None:
            inputs = {name: value.to(device) for name, value in sample.pictures.inputs(len(sample.ids)).items()}
            yield Batch(samples=(sample,), input_ids=torch.from_numpy(sample.ids)[None].to(device), inputs=inputs)


def arguments(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What the model is called with: ids without cache, a mask where there is padding, images in the model's dtype."""
    dtype = next(model.parameters()).dtype
    found: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    for name, value in batch.inputs.items():
        found[name] = value.to(dtype) if value.is_floating_point() else value
    if batch.padded:
        mask = torch.zeros(batch.input_ids.shape, dtype=torch.int64)
        for row, sample in zip(mask, batch.samples, strict=True):
            row[batch.columns(sample)] = 1
        mask = found["attention_mask"] = mask.to(batch.input_ids.device)
        if batch.side == "left" and "position_ids" in inspect.signature(model.forward).parameters:
            # Without them, most models count from the first column on, padding included.
            found["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return found


@torch.no_grad()
def forward(model: nn.Module, batch: Batch) -> Tensor:
    """One forward pass without cache: logits [batch, longest, vocabulary]."""
    logits: Tensor = model(**arguments(model, batch)).logits
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
