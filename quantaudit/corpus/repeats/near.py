"""Near copies: samples in which hardly anything is new, by the n-grams that they share with another one, in its order.

A token is known where it lies in an n-gram of another text, and the share of such tokens is how Llama 2 (Touvron et al.
2023, appendix A.6) and Llama 3 (2024, section 5.1.4) measure contamination. A word that was changed leaves the text
around it known; a second half, or a window that overlaps, is known as far as it does. Only what stands in the order of
one other text is: stretches from here and there, as code and short sentences have them, make no copy.

A sample is evidence where, outside boilerplate (`ngrams`), half of its tokens are new, or two thirds of its n-grams:
keys that two tables share are known in short stretches, and most n-grams are new. What is new must also be something,
an eighth of all tokens or eight in a row: a name makes no other letter of a form letter. Below thirteen tokens only
equal texts are found.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from quantaudit.corpus.repeats.equal import Repeats
from quantaudit.corpus.repeats.ngrams import NEIGHBORS, SIZE, Flags, Grams, Ids
from quantaudit.provenance import Split

NEW_TOKENS = 1 / 2
NEW_NGRAMS = 2 / 3
NEW_OF_ALL = 1 / 8
NEW_IN_A_ROW = 8
DRIFT = 32
"""Tokens by which words put in and left out may move a copy against its original."""
APART = 1 << 32
"""Between the places of two texts: more than a text has tokens."""


def find_near(texts: Sequence[Ids], splits: Sequence[Split], *, settled: Collection[int] = ()) -> Repeats:
    """The near copies among samples, from a number for each of their tokens and splits in order; the first is none.

    settled: places of samples that are known to be copies: they are not judged, and no boilerplate rests on them.
    """
    grams = Grams.of(texts, uncounted=settled)
    calibrating = [place for place, split in enumerate(splits) if split == "calibration"]
    evaluating = [place for place, split in enumerate(splits) if split == "evaluation" and place not in settled]
    repeated = _take([place for place in calibrating if place not in settled], Known(grams))
    known = Known(grams)
    for place in calibrating:
        known.take(place)
    overlapping = frozenset(place for place in evaluating if not known.is_new(place))
    repeated += _take([place for place in evaluating if place not in overlapping], known)
    return Repeats(overlapping=overlapping, repeated=frozenset(repeated))


def _take(places: Sequence[int], known: Known) -> list[int]:
    """Make known what is new, sample by sample; the places of the others."""
    repeated = []
    for place in places:
        if known.is_new(place):
            known.take(place)
        else:
            repeated.append(place)
    return repeated


class Known:
    """Where the n-grams of the samples that were taken stand: int64 [count], −1 where they are not known.

    Places are those in the first text that has the n-gram. A text that overlaps with it goes on in its places, so that
    windows of one document have theirs in one line, and copies those of their original.
    """

    def __init__(self, grams: Grams) -> None:
        self.grams = grams
        self.places = np.full(grams.count, -1, np.int64)

    def take(self, sample: int) -> None:
        """Make the n-grams of a sample known."""
        ids = self.grams.ids[sample]
        own = np.arange(len(ids)) + APART * (sample + 1)
        known = self.places[ids] >= 0
        if known.any():
            shift = self._shift(ids, known)[0]
            own = np.arange(len(ids)) + max(shift, 0)
        fresh, first = np.unique(ids[~known], return_index=True)
        self.places[fresh] = own[~known][first]

    def is_new(self, sample: int) -> bool:
        """Whether a sample is evidence of its own."""
        ids = self.grams.ids[sample]
        known = self.places[ids] >= 0
        if not known.any():
            return True
        new = ~_covered(self._in_order(ids, known))
        starts, ends = _runs(new)
        if np.count_nonzero(new) < NEW_OF_ALL * len(new) and (ends - starts).max(initial=0) < NEW_IN_A_ROW:
            return False
        boilerplate = _boilerplate(self.grams, ids, known)
        shared = known & _within(boilerplate)
        copied = self._in_order(ids, known & ~shared)
        tokens = np.count_nonzero(~_covered(copied) & ~boilerplate)
        ngrams = len(ids) - np.count_nonzero(shared) - np.count_nonzero(copied)
        return bool(
            tokens >= NEW_TOKENS * np.count_nonzero(~boilerplate)
            or ngrams >= NEW_NGRAMS * (ngrams + np.count_nonzero(copied))
        )

    def _in_order(self, ids: Ids, which: Flags) -> Flags:
        """Those of the n-grams that stand in the order of one other text: of the one that has most of them."""
        if not which.any():
            return which
        shift, shifts = self._shift(ids, which)
        in_order: Flags = which & (shifts >= shift) & (shifts <= shift + DRIFT)
        return in_order

    def _shift(self, ids: Ids, which: Flags) -> tuple[int, Ids]:
        """How far most of these n-grams are moved, from this many tokens to `DRIFT` more; and how far each is."""
        shifts = self.places[ids] - np.arange(len(ids))
        ordered = np.sort(shifts[which])
        within = np.searchsorted(ordered, ordered + DRIFT, side="right") - np.arange(len(ordered))
        return int(ordered[np.argmax(within)]), shifts


def _boilerplate(grams: Grams, ids: Ids, known: Flags) -> Flags:
    """bool [tokens]: in each stretch of common n-grams, all up to where texts part, and from where they meet."""
    common = _covered(known & grams.common[ids])
    boilerplate = np.zeros_like(common)
    for start, end in zip(*_runs(common), strict=True):
        inner = np.arange(start, end - SIZE + 1)
        parting = inner[grams.parting[ids[inner]] & (inner < len(ids) - NEIGHBORS)]  # not where this one ends
        meeting = inner[grams.meeting[ids[inner]] & (inner >= NEIGHBORS)]
        if len(parting):
            boilerplate[start : parting[-1] + SIZE] = True
        if len(meeting):
            boilerplate[meeting[0] : end] = True
    return boilerplate


def _covered(flags: Flags) -> Flags:
    """bool [tokens]: which tokens of a sample lie in a flagged n-gram, bool [tokens − 12]."""
    steps = np.zeros(len(flags) + SIZE, np.int64)
    steps[: len(flags)] += flags
    steps[SIZE:] -= flags
    covered: Flags = np.cumsum(steps)[:-1] > 0
    return covered


def _within(flags: Flags) -> Flags:
    """bool [tokens − 12]: which n-grams of a sample have nothing but flagged tokens, bool [tokens]."""
    sums = np.concatenate([[0], np.cumsum(flags)])
    within: Flags = sums[SIZE:] - sums[:-SIZE] == SIZE
    return within


def _runs(flags: Flags) -> tuple[Ids, Ids]:
    """Where runs of True start, and where they end (exclusive)."""
    steps = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
