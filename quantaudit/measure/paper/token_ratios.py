"""How far the largest channel of a token lies above its median channel, over all tokens: a pass of its own.

No profile holds it, for it takes the median of every token at every site, where a profile takes those of few.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from quantaudit.common.progress import Advance, no_advance
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import MeasurementError
from quantaudit.measure.block_by_block import run_by_block
from quantaudit.measure.collector import by_token
from quantaudit.measure.follower import Follower
from quantaudit.measure.paper.reference import TokenRatios
from quantaudit.measure.run import padding_token
from quantaudit.model.forward.batches import ONE, BatchLimit, batches, forward, last_logit_only
from quantaudit.model.forward.capture import capture
from quantaudit.model.forward.half_softmax import half_softmax
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import non_text_sites
from quantaudit.stats.kernels.device import median_of_finite

KINDS = ("embedding", "residual", "attention_output", "mlp_output", "final_norm")
"""Kinds of sites that the paper's repository gives ratios of."""


def token_ratios(
    loaded: LoadedModel, corpus: TokenizedCorpus, *, batch: BatchLimit = ONE, progress: Advance = no_advance
) -> dict[str, TokenRatios]:
    """Site → its ratios, of every site of these kinds that has a row for each token, and a median above zero."""
    non_text = non_text_sites(loaded.model, loaded.architecture.sites)
    sites = [site for site in loaded.architecture.sites if site.kind in KINDS and site.name not in non_text]
    collector = RatioCollector()
    all_batches = batches(corpus.samples, batch, pad=padding_token(loaded) or 0, device=loaded.device)
    with ExitStack() as stack:
        stack.enter_context(capture(loaded.model, sites, collector.receive, collector.refuse))
        stack.enter_context(last_logit_only(loaded.model))
        stack.enter_context(half_softmax(loaded.model))
        if loaded.weights is not None:
            run_by_block(loaded, loaded.weights, collector, all_batches, progress)
        else:
            for rows in all_batches:
                collector.batch = rows
                forward(loaded.model, rows)
                progress(rows.tokens)
    return collector.result()


class RatioCollector(Follower):
    """Running moments of the ratios by site, on its tensors' device."""

    def __init__(self) -> None:
        super().__init__()
        self._moments: dict[str, Moments] = {}
        self._refused: set[str] = set()

    def receive(self, site: str, tensor: Tensor) -> None:
        """Add a site's tensor; padding does not count."""
        batch = self.batch
        if self.ignores or site in self._refused:
            return
        try:
            for x_NC in by_token(tensor, batch.input_ids.shape):
                for labels, _ in batch.split_by_sample(x_NC, site):
                    counted = labels.on(x_NC.device).segment < len(labels.sample)
                    self._add(site, x_NC, counted)
        except MeasurementError as error:
            self.refuse(site, error)

    def _add(self, site: str, x_NC: Tensor, counted: Tensor) -> None:
        ratios, known = ratios_of(x_NC)
        moments = self._moments.get(site)
        new = Moments.of(ratios, known & counted)
        self._moments[site] = new if moments is None else moments.with_others(new)

    def refuse(self, site: str, error: MeasurementError) -> None:
        """Drop a site whose rows are not those of the tokens."""
        self._refused.add(site)
        self._moments.pop(site, None)

    def result(self) -> dict[str, TokenRatios]:
        """Site → its ratios."""
        fetched = {site: moments.fetched() for site, moments in self._moments.items()}
        return {site: row for site, row in fetched.items() if row.tokens}


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean, sum of squared deviations and largest of some numbers: float64 [4], on their device."""

    values: Tensor

    @classmethod
    def of(cls, numbers: Tensor, chosen: Tensor) -> Moments:
        """numbers: float64 [n]; chosen: bool [n]."""
        count = chosen.sum().double()
        mean = torch.where(chosen, numbers, 0.0).sum() / count.clamp_min(1)
        squares = torch.where(chosen, (numbers - mean) ** 2, 0.0).sum()
        largest = torch.where(chosen, numbers, 0.0).amax()
        return cls(torch.stack([count, mean, squares, largest]))

    def with_others(self, other: Moments) -> Moments:
        """Of both together (Chan, Golub and LeVeque 1979)."""
        n, mean, squares, largest = self.values
        m, other_mean, other_squares, other_largest = other.values
        both = (n + m).clamp_min(1)
        gap = other_mean - mean
        return Moments(
            torch.stack(
                [
                    n + m,
                    mean + gap * m / both,
                    squares + other_squares + gap**2 * n * m / both,
                    torch.maximum(largest, other_largest),
                ]
            )
        )

    def fetched(self) -> TokenRatios:
        """On the host."""
        count, mean, squares, largest = self.values.tolist()
        std = (squares / count) ** 0.5 if count else 0.0
        return TokenRatios(tokens=int(count), highest=largest, mean=mean, std=std)


def ratios_of(x_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Largest over median finite |x| of each row, float64 [rows], and whether its median is above zero, bool [rows]."""
    magnitude = x_NC.float().abs()
    largest = torch.where(magnitude.isfinite(), magnitude, 0.0).amax(1).double()
    median = median_of_finite(x_NC).double()
    known = median > 0
    return largest / torch.where(known, median, 1.0), known
