"""Shards of a run: parts that are measured apart, and whose profiles add up to that of the whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from quantaudit.errors import UsageError

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index`, from 1, of `count`: every count-th batch of the run.

    Whole batches are dealt, and not samples: a batch is padded to its longest sample, and computes the same wherever
    it runs. They come longest first, so that shards take about equally long.
    """

    index: int
    count: int

    def deal(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Those of a run's batches, in its order, that fall to this shard."""
        return islice(batches, self.index - 1, None, self.count)

    def check(self, batches: int) -> None:
        """Raises UsageError where a run of so few batches would leave a shard with none."""
        if batches < self.count:
            raise UsageError(
                f"a run of {batches} batches cannot be divided into {self.count} shards",
                where="--shard",
                hint=f"divide it into {batches} at most, or lower --batch-size",
            )


def parse_shard(text: str) -> Shard:
    """Read `2/4`. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    shard = Shard(*map(int, match.groups())) if match else None
    if shard is None or not 1 <= shard.index <= shard.count:
        raise UsageError(
            f"no shard: {text!r}", where="--shard", hint="give which and of how many, from 1/4 to 4/4 for four shards"
        )
    return shard
