"""The n-grams of a corpus, numbered, and which of them many samples share as boilerplate.

Thirteen tokens, as in GPT-3's search for test sets among its training text (Brown et al. 2020, appendix C). They are
numbered by doubling: pairs of tokens, pairs of pairs, and so on, each time by one sort, so that equal numbers are equal
n-grams without a hash that could collide. Some fifty bytes of memory a token, however often text repeats.

Boilerplate ends where texts part: what follows a system prompt, a license or a key of a table differs from sample to
sample (the successor variety by which Harris 1955 finds the ends of morphemes). Where a word of one copy was changed,
all other copies go on alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZE = 13
COMMON = 3
"""Samples that share an n-gram, at least, before it can be boilerplate: two are a text and its copy."""
NEIGHBORS = 4
"""Tokens after or before an n-gram in which texts part: one may be the same full stop in all of them."""
ALIKE = 3 / 4
"""Of the other samples with an n-gram, this share or more go on alike where it is in the middle of a text."""

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grams:
    """ids: those of each sample by their first token, int64 [tokens − 12]; below `count`, equal for equal n-grams.

    common: bool [count], whether at least three samples share it. parting, meeting: bool [count], whether these go on
    in different ways after it, or come from different text before it.
    """

    ids: tuple[Ids, ...]
    count: int
    common: Flags
    parting: Flags
    meeting: Flags

    @classmethod
    def of(cls, texts: Sequence[Ids], *, uncounted: Collection[int] = ()) -> Grams:
        """uncounted: places of texts that are no samples of their own, such as copies: they make nothing common."""
        tokens = np.concatenate([np.empty(0, np.int64), *texts])
        lengths = np.array([len(text) for text in texts], np.int64)
        owners = np.repeat(np.arange(len(texts)), lengths)
        grams = _numbered(tokens)
        longer = _pairs(grams[:-NEIGHBORS], grams[NEIGHBORS:])  # an n-gram and those after it; those before, and it
        counted = ~np.isin(owners, list(uncounted))
        count = int(grams.max(initial=-1)) + 1
        samples = _samples(grams, owners, counted, SIZE)
        going_on = _samples(longer, owners, counted, SIZE + NEIGHBORS)
        starts = np.cumsum(lengths) - lengths
        whole = np.maximum(lengths - SIZE + 1, 0)
        return cls(
            ids=tuple(grams[start : start + size] for start, size in zip(starts, whole, strict=True)),
            count=count,
            common=samples >= COMMON,
            parting=_varied(samples, grams[:-NEIGHBORS], longer, going_on),
            meeting=_varied(samples, grams[NEIGHBORS:], longer, going_on),
        )


def _numbered(tokens: Ids) -> Ids:
    """A number for each window of `SIZE` tokens, by its first one; windows across two texts are among them."""
    numbers, width = np.unique(tokens, return_inverse=True)[1], 1
    while width < SIZE:
        step = min(width, SIZE - width)  # two windows that overlap make one as well
        numbers, width = _pairs(numbers[:-step], numbers[step:]), width + step
    return numbers


def _pairs(first: Ids, second: Ids) -> Ids:
    numbers: Ids = np.unique(first * (int(second.max(initial=0)) + 1) + second, return_inverse=True)[1]
    return numbers


def _samples(numbers: Ids, owners: Ids, counted: Flags, width: int) -> Ids:
    """How many samples have each n-gram of `width` tokens, int64 by number."""
    size = len(numbers)
    places = np.flatnonzero(counted[:size] & (owners[:size] == owners[width - 1 : width - 1 + size]))
    several = int(owners.max(initial=0)) + 1
    once = np.unique(numbers[places] * several + owners[places]) // several
    return np.bincount(once, minlength=int(numbers.max(initial=-1)) + 1)


def _varied(samples: Ids, grams: Ids, longer: Ids, going_on: Ids) -> Flags:
    """bool by number: whether less than `ALIKE` of the samples with an n-gram, but one, go on alike."""
    number, place = np.unique(longer, return_index=True)
    most = np.zeros_like(samples)
    np.maximum.at(most, grams[place], going_on[number])
    varied: Flags = most < ALIKE * (samples - 1)
    return varied
