"""From rows to token ids, as the model is deployed: the tokenizer's own special tokens and chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantaudit.corpus.load import Corpus, CorpusRow
from quantaudit.corpus.split import Split, assign, stratified
from quantaudit.errors import CorpusError
from quantaudit.provenance import CorpusInfo, SampleInfo, SplitInfo

_NO_TEMPLATE = "the tokenizer has no chat template: chats were written as plain 'role: content' lines"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """ids: int64 [tokens], without padding. index: its place in the corpus."""

    index: int
    id: str
    domain: str
    split: Split
    ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedCorpus:
    """All samples of a run, with the provenance of the text."""

    samples: tuple[TokenizedSample, ...]
    info: CorpusInfo

    def sample_infos(self) -> list[SampleInfo]:
        """The samples as a profile lists them."""
        return [SampleInfo(id=s.id, domain=s.domain, split=s.split, tokens=len(s.ids)) for s in self.samples]


def tokenize(
    corpus: Corpus,
    tokenizer: Any,
    *,
    vocab_size: int,
    context_length: int | None,
    max_length: int,
    samples: int | None = None,
    seed: int = 0,
) -> TokenizedCorpus:
    """Tokenize, split and cut a corpus. samples: how many rows to take, fairly over domains; None for all.

    Raises CorpusError for a row without tokens or with ids outside the vocabulary.
    """
    limit = min(max_length, context_length or max_length)
    chosen = sorted(stratified(corpus.rows, seed)[:samples]) if samples else list(range(len(corpus.rows)))
    rows = [corpus.rows[i] for i in chosen]
    splits = assign(rows, seed)
    if len(set(splits)) < 2:
        raise CorpusError(
            f"every sample is in the {splits[0]} split",
            where=corpus.spec,
            hint="scales come from one split and errors from the other: name both, or leave `split` out",
        )
    taken: list[TokenizedSample] = []
    truncated = 0
    for index, (row, split) in enumerate(zip(rows, splits, strict=True)):
        label = row.id or f"row-{chosen[index] + 1}"
        ids = _ids(row, tokenizer)
        _check(ids, vocab_size, where=f"{corpus.spec}: {label}")
        truncated += len(ids) > limit
        taken.append(TokenizedSample(index=index, id=label, domain=row.domain, split=split, ids=ids[:limit]))
    plain = any(row.messages for row in rows) and not tokenizer.chat_template
    return TokenizedCorpus(
        samples=tuple(taken),
        info=CorpusInfo(
            spec=corpus.spec,
            name=corpus.name,
            sha256=corpus.sha256,
            samples=len(taken),
            tokens=sum(len(sample.ids) for sample in taken),
            truncated=truncated,
            max_length=max_length,
            seed=seed,
            calibration=_count([s for s in taken if s.split == "calibration"]),
            evaluation=_count([s for s in taken if s.split == "evaluation"]),
            domains={
                domain: _count([s for s in taken if s.domain == domain])
                for domain in sorted(Counter(s.domain for s in taken))
            },
            notes=[_NO_TEMPLATE] if plain else [],
        ),
    )


def _ids(row: CorpusRow, tokenizer: Any) -> NDArray[np.int64]:
    if row.input_ids:
        return np.asarray(row.input_ids, np.int64)
    if not row.messages:
        return np.asarray(tokenizer(row.text, verbose=False)["input_ids"], np.int64)
    if not tokenizer.chat_template:
        text = "\n".join(f"{message.role}: {message.content}" for message in row.messages)
        return np.asarray(tokenizer(text, verbose=False)["input_ids"], np.int64)
    turns = [message.model_dump() for message in row.messages]
    return np.asarray(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"], np.int64)


def _check(ids: NDArray[np.int64], vocab_size: int, where: str) -> None:
    if not len(ids):
        raise CorpusError("sample has no tokens", where=where, hint="remove the row")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise CorpusError(
            f"token id {outside[0]} is outside the vocabulary of {vocab_size}",
            where=where,
            hint="use the ids of this model's own tokenizer, or give text",
        )


def _count(samples: Sequence[TokenizedSample]) -> SplitInfo:
    return SplitInfo(samples=len(samples), tokens=sum(len(sample.ids) for sample in samples))
