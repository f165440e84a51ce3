"""Which texts are equal, or the beginning of one another.

Two texts are one where they are equal, or where the shorter one is the beginning of the longer one and at least half
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantaudit.provenance import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Places of samples. overlapping: they evaluate, and what they say has calibrated too.

    repeated: their split has the same text at an earlier place. None is in both.
    """

    overlapping: frozenset[int]
    repeated: frozenset[int]

    def counts(self) -> dict[str, int]:
        """How many there are: fields of a `CorpusInfo`."""
        return {"overlapping": len(self.overlapping), "repeated": len(self.repeated)}

    @property
    def all(self) -> frozenset[int]:
        """Both."""
        return self.overlapping | self.repeated

    def __or__(self, other: Repeats) -> Repeats:
        return Repeats(overlapping=self.overlapping | other.overlapping, repeated=self.repeated | other.repeated)


def find_repeats(texts: Sequence[str], splits: Sequence[Split]) -> Repeats:
    """The samples whose text is one with another's, from their texts and splits in order; of equal ones the first is
    none."""
    same = _same_texts(texts)
    calibrating = {text for text, split in zip(texts, splits, strict=True) if split == "calibration"}
    kept: dict[Split, set[str]] = {"calibration": set(), "evaluation": set()}
    overlapping, repeated = [], []
    for place, (text, split) in enumerate(zip(texts, splits, strict=True)):
        if split == "evaluation" and not same[text].isdisjoint(calibrating):
            overlapping.append(place)
        elif not same[text].isdisjoint(kept[split]):
            repeated.append(place)
        else:
            kept[split].add(text)
    return Repeats(overlapping=frozenset(overlapping), repeated=frozenset(repeated))


def _same_texts(texts: Sequence[str]) -> dict[str, set[str]]:
    """Text → those that are one with it, itself among them. Sorted, all beginnings of a text come before it."""
    same = {text: {text} for text in texts}
    beginnings: list[str] = []
    for text in sorted(same):
        while beginnings and not text.startswith(beginnings[-1]):
            beginnings.pop()
        for beginning in beginnings:
            if 2 * len(beginning) >= len(text):
                same[text].add(beginning)
                same[beginning].add(text)
        beginnings.append(text)
    return same
