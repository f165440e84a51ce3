"""Samples as their tokens are written in the vocabulary, without white space: what is compared when texts are.

Copies that differ in a space, a line break or an id of their own are then one text; other images make other samples of
equal text.
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


class Sample(Protocol):
    """What is compared: token ids, int64 [tokens]; images, where there are any; and what it is for."""

    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def pictures(self) -> Pictures | None: ...
    @property
    def split(self) -> Split: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How the tokens of some samples are written. tokens: int64, each once, sorted; pieces: its text, by place."""

    tokens: NDArray[np.int64]
    pieces: list[str]

    @classmethod
    def of(cls, samples: Sequence[Sample], tokenizer: Any) -> Spelling:
        """That of a tokenizer's vocabulary. None: a token is written as its id."""
        tokens = np.unique(np.concatenate([np.empty(0, np.int64), *(sample.ids for sample in samples)]))
        names = [None] * len(tokens) if tokenizer is None else tokenizer.convert_ids_to_tokens(tokens.tolist())
        pieces = [_piece(token, name) for token, name in zip(tokens.tolist(), names, strict=True)]
        return cls(tokens=tokens, pieces=pieces)

    def texts(self, samples: Sequence[Sample]) -> list[str]:
        """Each sample as one string, which digests of its images begin."""
        return [
            _digests(sample.pictures) + "".join(self.pieces[i] for i in self._places(sample.ids)) for sample in samples
        ]

    def numbers(self, samples: Sequence[Sample]) -> list[NDArray[np.int64]]:
        """Each sample as a number for each of its pieces, int64 [pieces]: equal for equal text with equal images.

        Pieces of nothing but white space are left out, and so are tokens that stand for images.
        """
        seen: dict[tuple[str, str], int] = {}
        numbered = []
        for sample in samples:
            images = _digests(sample.pictures)
            text = sample.ids if sample.pictures is None else sample.ids[~sample.pictures.stand_ins(sample.ids)]
            pieces = (self.pieces[i] for i in self._places(text))
            numbers = [seen.setdefault((images, piece), len(seen)) for piece in pieces if piece]
            numbered.append(np.asarray(numbers, np.int64))
        return numbered

    def _places(self, ids: NDArray[np.int64]) -> list[int]:
        places: list[int] = np.searchsorted(self.tokens, ids).tolist()
        return places


def _piece(token: int, name: str | bytes | None) -> str:
    if name is None:
        return f"{token},"
    if isinstance(name, bytes):  # vocabularies of tiktoken
        name = name.decode("latin-1")
    return "" if name in _BYTES else "".join(name.translate(_SPACES).split())


def _digests(pictures: Pictures | None) -> str:
    return "" if pictures is None else "".join(f"{picture.sha256} " for picture in pictures.row.pictures or ())
