"""A batch as other people's loops make it: which of its columns hold tokens is told by an attention mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from quantaudit.errors import MeasurementError
from quantaudit.model.drive import Batch, Share
from quantaudit.model.routing import Routed


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBatch(Batch):
    """mask: bool [batch, longest], true where there is a token; samples[b] holds the ids of those in row b."""

    mask: Tensor

    def shares(self, x_NC: Tensor, site: str) -> Iterator[Share]:
        """Each sample's valid rows of a tensor that has one row for every token, padding included.

        x_NC: [batch x longest, channels]. Raises MeasurementError where it has other rows.
        """
        if len(x_NC) != self.input_ids.numel():
            raise MeasurementError(f"has {len(x_NC)} rows for {self.input_ids.numel()} tokens", where=site)
        rows, mask = x_NC.reshape(*self.input_ids.shape, x_NC.shape[-1]), self.mask.to(x_NC.device)
        for x_TC, valid, sample in zip(rows, mask, self.samples, strict=True):
            if len(sample.ids):
                yield sample, x_TC if len(sample.ids) == len(x_TC) else x_TC[valid], None

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
        mask, tokens = self.mask.cpu(), routed.tokens.cpu()
        rows, valid = tokens // mask.shape[1], mask.reshape(-1)[tokens]
        positions = (mask.cumsum(1) - 1).reshape(-1)[tokens]
        for row, sample in enumerate(self.samples):
            mine = ((rows == row) & valid).nonzero()[:, 0]
            if len(mine):
                yield sample, x_KC[mine.to(x_KC.device)], positions[mine].numpy()
