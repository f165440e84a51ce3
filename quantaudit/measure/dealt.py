"""The batches that a rank runs, and the same in smaller ones where memory does not hold them."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from quantaudit.common.progress import Advance
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import is_out_of_memory
from quantaudit.model.forward.batches import Batch, batch_of

T = TypeVar("T")

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """Batches, made anew whenever they are iterated over. divided: samples by batch, the longest first; pad: the token
    that rows are padded with; most: samples in a batch, at most: larger ones are run in parts; None for no limit.
    """

    divided: Sequence[Sequence[TokenizedSample]]
    pad: int
    device: torch.device
    most: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        for samples in self.divided:
            size = self.most or len(samples)
            for start in range(0, len(samples), size):
                yield batch_of(samples[start : start + size], pad=self.pad, device=self.device)

    @property
    def name(self) -> str:
        """Tells these from larger ones, where what was finished of either is kept."""
        return "" if self.most is None else f" {self.most} at a time"

    def halved(self) -> Dealt | None:
        """The same with half as many samples in a batch; None where each has one."""
        largest = max(map(len, self.divided), default=1)
        largest = min(largest, self.most or largest)
        return replace(self, most=largest // 2) if largest > 1 else None


def in_batches_that_fit(work: Callable[[Dealt, Advance], T], dealt: Dealt, progress: Advance) -> tuple[T, Dealt]:
    """What `work` makes of batches, and those that it made it of: the first that memory holds, each half the last.

    `work` begins anew each time, so that nothing is counted twice, and `progress` goes back by what was done. Raises
    what it raised where a single sample does not fit.
    """
    while True:
        passed = [0]

        def advance(amount: int = 1, passed: list[int] = passed) -> None:
            passed[0] += amount
            progress(amount)

        try:
            return work(dealt, advance), dealt
        except (RuntimeError, MemoryError) as error:
            smaller = dealt.halved()
            if smaller is None or not is_out_of_memory(error):
                raise
        # Only here has the traceback gone, and with it what it keeps alive.
        dealt = smaller
        progress(-passed[0])
        gc.collect()
        if dealt.device.type != "cpu":
            torch.accelerator.empty_cache()
        LOG.warning("memory does not hold a batch: beginning again with at most %d samples in each", dealt.most)
