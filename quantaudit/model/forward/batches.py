"""Runs the forward passes: the whole model, batch by batch, padded on one side where samples differ in length."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError, QuantauditError, is_out_of_memory
from quantaudit.model.forward.hooks import replace_inputs
from quantaudit.model.forward.routing import Routed
from quantaudit.provenance import SPLITS
from quantaudit.stats.labels import ALL, Chosen, Labels

LabeledRows = tuple[Labels, Chosen]
"""What the tokens of a batch are, and which of them the rows of a tensor are."""

PaddingSide = Literal["left", "right"]
_PACKAGE = Path(__file__).parents[2]
NO_TOKEN = -1
"""Stands for the token at rows of a vision tower: they are patches of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples that run in one forward pass.

    input_ids: int64 [batch, longest], padded on one side: row b holds samples[b] in its first or last columns.

    inputs: what the model is given in addition, such as pixel_values, by argument; only for a batch of one sample.
    """

    samples: tuple[TokenizedSample, ...]
    input_ids: Tensor
    side: PaddingSide = "right"
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    _labels: dict[int | None, Labels] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def positions(self) -> Tensor:
        """Position of every column in its row's sample, −1 at padding: int64 [batch, longest], on the host."""
        positions = torch.full(self.input_ids.shape, -1, dtype=torch.int64)
        for row, sample in zip(positions, self.samples, strict=True):
            row[self.columns(sample)] = torch.arange(len(sample.ids))
        return positions

    def labels(self, patches: int | None = None) -> Labels:
        """What the columns of all rows are, one row after another; built once. patches: those of so many patches."""
        if patches not in self._labels:
            self._labels[patches] = self._token_labels() if patches is None else self._patch_labels(patches)
        return self._labels[patches]

    def _token_labels(self) -> Labels:
        position = self.positions().numpy()
        segment = np.where(position < 0, -1, np.arange(len(position))[:, None])
        token = np.full(position.shape, NO_TOKEN, np.int64)
        for row, sample in enumerate(self.samples):
            token[row, position[row] >= 0] = sample.ids
        return self._labelled(segment, position, token)

    def _patch_labels(self, patches: int) -> Labels:
        return self._labelled(np.zeros(patches), np.arange(patches), np.full(patches, NO_TOKEN))

    def _labelled(self, *rows: NDArray[Any]) -> Labels:
        segment, position, token = (np.ascontiguousarray(values.reshape(-1), dtype=np.int64) for values in rows)
        return Labels(
            segment=segment,
            position=position,
            token=token,
            sample=np.array([sample.index for sample in self.samples], np.int64),
            # A split's number in labels is its place in SPLITS.
            split=np.array([SPLITS.index(sample.split) for sample in self.samples], np.int64),
        )

    def split_by_sample(self, x_NC: Tensor, site: str) -> Iterable[LabeledRows]:
        """What the rows of a tensor are that has one row for every token, padding included.

        x_NC: [batch x longest, channels]. Raises MeasurementError where it has other rows.
        """
        if len(x_NC) != self.input_ids.numel():
            raise MeasurementError(f"has {len(x_NC)} rows for {self.input_ids.numel()} tokens", where=site)
        return ((self.labels(), ALL),)

    def patches(self, x_NC: Tensor) -> Iterable[LabeledRows]:
        """What the rows are on the way from pixels to tokens: they have an axis of their own, and one sample is alone.

        x_NC: [patches, channels], in the order in which the tower holds them.
        """
        return ((self.labels(len(x_NC)), ALL),)

    def routed(self, x_NC: Tensor, routed: Routed, site: str) -> Iterable[LabeledRows]:
        """What the rows of an expert's tensor are.

        x_NC: [rows, channels]. Raises MeasurementError where its rows are not those of the expert's input.
        """
        if len(x_NC) != routed.count or routed.total != self.input_ids.numel():
            raise MeasurementError(
                f"has {len(x_NC)} rows of {routed.total} tokens, where {routed.count} rows of "
                f"{self.input_ids.numel()} tokens were routed",
                where=site,
            )
        return ((self.labels(), routed.chosen),)


@dataclass(frozen=True, slots=True)
class BatchLimit:
    """How much runs in one forward pass. samples: at most so many. tokens: as many samples as have at most so many
    tokens, padding included, or one that has more; None where samples alone are counted.
    """

    samples: int = 1
    tokens: int | None = None

    def rows(self, longest: int) -> int:
        """Samples in a batch whose longest has so many tokens."""
        return self.samples if self.tokens is None else max(1, self.tokens // max(longest, 1))


ONE = BatchLimit()
"""Samples one by one."""


def divide(samples: Sequence[TokenizedSample], limit: BatchLimit = ONE) -> list[list[TokenizedSample]]:
    """Samples by batch, longest first, of similar length in each so that little is computed on padding.

    A sample with images is a batch of its own: models join images to text in ways that differ, and none pads them.
    """
    order = sorted(samples, key=lambda sample: (-len(sample.ids), sample.index))
    text = [sample for sample in order if sample.pictures is None]
    divided = []
    while text:
        rows = limit.rows(len(text[0].ids))
        divided.append(text[:rows])
        text = text[rows:]
    return divided + [[sample] for sample in order if sample.pictures is not None]


def padded_tokens(samples: Sequence[TokenizedSample]) -> int:
    """Tokens of a batch of these samples, padding included."""
    return len(samples) * max(len(sample.ids) for sample in samples)


def batches(
    samples: Sequence[TokenizedSample],
    limit: BatchLimit = ONE,
    *,
    pad: int = 0,
    device: torch.device,
    side: PaddingSide = "right",
) -> Iterator[Batch]:
    """The batches that `divide` makes of samples, each padded with the token `pad` on one side."""
    return (batch_of(rows, pad=pad, device=device, side=side) for rows in divide(samples, limit))


def batch_of(
    samples: Sequence[TokenizedSample], *, pad: int = 0, device: torch.device, side: PaddingSide = "right"
) -> Batch:
    """Samples, the longest first, as one batch; several, or one that may have images."""
    first = samples[0]
    if first.pictures is not None:
        inputs = {name: value.to(device) for name, value in first.pictures.inputs(len(first.ids)).items()}
        return Batch(samples=(first,), input_ids=torch.from_numpy(first.ids)[None].to(device), inputs=inputs)
    padded = Batch(samples=tuple(samples), input_ids=torch.full((len(samples), len(first.ids)), pad), side=side)
    for row, sample in zip(padded.input_ids, samples, strict=True):
        row[padded.columns(sample)] = torch.from_numpy(sample.ids)
    return replace(padded, input_ids=padded.input_ids.to(device))


def arguments(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What the model is called with: ids without cache, a mask where there is padding, images in the model's dtype."""
    dtype = next(model.parameters()).dtype
    given: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    for name, value in batch.inputs.items():
        given[name] = value.to(dtype) if value.is_floating_point() else value
    if batch.padded:
        mask = torch.zeros(batch.input_ids.shape, dtype=torch.int64)
        for row, sample in zip(mask, batch.samples, strict=True):
            row[batch.columns(sample)] = 1
        mask = given["attention_mask"] = mask.to(batch.input_ids.device)
        if batch.side == "left" and "position_ids" in inspect.signature(model.forward).parameters:
            # Without them, most models count from the first column on, padding included.
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return given


@torch.no_grad()
def forward(model: nn.Module, batch: Batch) -> Tensor:
    """One forward pass without cache: logits [batch, longest, vocabulary].

    Raises MeasurementError where the model needs what the batch does not have, such as images, and where its own code
    fails on it.
    """
    given = arguments(model, batch)
    if missing := _required(model) - given.keys():
        raise MeasurementError(
            f"the model cannot run without {', '.join(sorted(missing))}",
            where=f"sample {batch.samples[0].id}",
            hint="give a corpus in which every sample has an image" if "pixel_values" in missing else None,
        )
    try:
        logits: Tensor = model(**given).logits
    except Exception as error:
        if not _raised_by_the_model(error):
            raise
        lines = str(error).strip().splitlines() or [""]
        mixed = any(words in str(error) for words in ("dtype", "scalar type"))
        raise MeasurementError(
            f"the model's own forward pass fails: {type(error).__name__}: {lines[0]}",
            where=f"sample {batch.samples[0].id}",
            hint="its code may need another dtype: try --dtype float32"
            if mixed
            else "see whether transformers alone runs it on such an input: model(input_ids=…, use_cache=False)",
        ) from error
    return logits


def _raised_by_the_model(error: Exception) -> bool:
    """Whether an error came from a model's code: not from a hook of ours, nor for want of memory."""
    if isinstance(error, QuantauditError) or is_out_of_memory(error):
        return False
    codes = [frame.f_code for frame, _line in traceback.walk_tb(error.__traceback__)][1:]
    # A mode that functions of PyTorch pass through calls them for the model.
    own = (Path(code.co_filename) for code in codes if code.co_name != "__torch_function__")
    return not any(path.is_relative_to(_PACKAGE) for path in own)


def _required(model: nn.Module) -> set[str]:
    """Arguments that a model's forward has no default for."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty}


@contextmanager
def last_logit_only(model: nn.Module) -> Iterator[None]:
    """While this lasts, the output projection is computed for the last position only.

    Measuring needs what goes into it, not the logits: tapped before this context is entered, its whole input is seen,
    and a vocabulary's worth of work and memory for every token is saved.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        yield
        return
    with replace_inputs(head, lambda _module, args, kwargs: ((args[0][:, -1:], *args[1:]), kwargs)):
        yield
