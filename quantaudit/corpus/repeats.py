"""Which samples are the text of another one: what repeats is no further evidence, and what calibrated is none.

Samples are compared as the token ids that run, spelled without white space: copies that differ in a space, a line break
or an id of their own are one text. Two texts are one where they are equal, or where the shorter one is the beginning of
the longer one and at least half of it. Other images make other samples of equal text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantaudit.corpus.images import Pictures
from quantaudit.provenance import Split

_SPACES = str.maketrans("", "", "\u0120\u010a\u010d\u0109\u2581")
"""What vocabularies write for a space, a line break, a carriage return, a tab; and the space of SentencePiece."""
_BYTES = {"<0x09>", "<0x0A>", "<0x0D>", "<0x20>"}


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


class Sample(Protocol):
    """What is compared: token ids, int64 [tokens]; images, where there are any; and what it is for."""

    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def pictures(self) -> Pictures | None: ...
    @property
    def split(self) -> Split: ...


def repeats_of(samples: Sequence[Sample], tokenizer: Any) -> Repeats:
    """The samples that are no evidence of their own; of equal ones the first is. tokenizer: None compares ids alone."""
    return find_repeats(spelled(samples, tokenizer), [sample.split for sample in samples])


def find_repeats(texts: Sequence[str], splits: Sequence[Split]) -> Repeats:
    """The same, from their texts and splits in order."""
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


def spelled(samples: Sequence[Sample], tokenizer: Any) -> list[str]:
    """Samples as their tokens are written in the vocabulary, without white space; digests of images come first.

    tokenizer: None compares token ids as they are.
    """
    known = np.unique(np.concatenate([np.empty(0, np.int64), *(sample.ids for sample in samples)]))
    names = [None] * len(known) if tokenizer is None else tokenizer.convert_ids_to_tokens(known.tolist())
    pieces = {token: _piece(token, name) for token, name in zip(known.tolist(), names, strict=True)}
    return [_digests(sample.pictures) + "".join(map(pieces.__getitem__, sample.ids.tolist())) for sample in samples]


def _piece(token: int, name: str | bytes | None) -> str:
    if name is None:
        return f"{token},"
    if isinstance(name, bytes):  # vocabularies of tiktoken
        name = name.decode("latin-1")
    return "" if name in _BYTES else "".join(name.translate(_SPACES).split())


def _digests(pictures: Pictures | None) -> str:
    return "" if pictures is None else "".join(f"{picture.sha256} " for picture in pictures.row.pictures or ())
