"""Which samples calibrate, and which ones errors are reported on: seeded, stratified by domain, two to one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import zip_longest

from quantaudit.corpus.load import CorpusRow
from quantaudit.provenance import Split


def assign(rows: Sequence[CorpusRow], seed: int) -> list[Split]:
    """A split for every row. Rows that name theirs keep it; of the others every third, domain by domain, evaluates.

    Both splits get at least one sample. Depends on the rows' content and the seed, not on their order.
    """
    free = [i for i, row in enumerate(rows) if row.split is None]
    free.sort(key=lambda i: (rows[i].domain, _draw(rows[i], seed)))
    splits: list[Split] = [row.split or "calibration" for row in rows]
    for rank, i in enumerate(free):
        if rank % 3 == 2:
            splits[i] = "evaluation"
    if free and "evaluation" not in splits:
        splits[free[-1]] = "evaluation"
    if free and "calibration" not in splits:
        splits[free[0]] = "calibration"
    return splits


def stratified(rows: Sequence[CorpusRow], seed: int) -> list[int]:
    """Indices of all rows, domains in turn, in seeded order within each: any prefix is a fair sample."""
    order = sorted(range(len(rows)), key=lambda i: _draw(rows[i], seed))
    return [order[i] for i in round_robin([rows[i].domain for i in order])]


def round_robin(domains: Sequence[str]) -> list[int]:
    """Indices with their domains in turn: the first of every domain, then the second of every domain, and so on."""
    queues: dict[str, list[int]] = {}
    for i, domain in enumerate(domains):
        queues.setdefault(domain, []).append(i)
    turns = zip_longest(*(queues[domain] for domain in sorted(queues)))
    return [i for turn in turns for i in turn if i is not None]


def _draw(row: CorpusRow, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0".encode() + row.canonical(labels=False)).digest()
