"""From rows to token ids: as the model is deployed, with the tokenizer's special tokens and chat template, or bare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantaudit.common.choices import SpecialTokens
from quantaudit.common.reading.templates import templates_apart
from quantaudit.corpus.assistant_mask import assistant_tokens
from quantaudit.corpus.chats import render
from quantaudit.corpus.images import Pictures, plain_chat
from quantaudit.corpus.load import Corpus, CorpusRow
from quantaudit.corpus.repeats.find import repeats_of
from quantaudit.corpus.rows import digest
from quantaudit.corpus.split import assign, stratified
from quantaudit.errors import CorpusError
from quantaudit.provenance import CorpusInfo, InputPart, SampleInfo, Split, SplitInfo

_NOTES = {
    "tools": "the chat template does not write tools: those that {count:,} chats offer were left out",
    "calls": "the chat template does not write calls of tools: those in {count:,} chats were left out",
    "turns": "the chat template does not write every turn: in {count:,} chats the text of some was left out",
    "plain tools": "tools that {count:,} chats offer were left out: only a chat template writes them",
    "once": "{count:,} texts begin or end with special tokens that the tokenizer writes itself (such as {token}): "
    "they were written once",
}
_NO_TEMPLATE = "the tokenizer has no chat template: chats were written as plain 'role: content' lines"
_BARE = "chats were written as plain 'role: content' lines, without the chat template's special tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """One sample of a run: its token ids, int64 [tokens], without padding.

    index: its place in the corpus. pictures: its images, where it has any.

    assistant: bool, which tokens of a chat are the assistant's; it may reach beyond ids that were cut. None for others.
    """

    index: int
    id: str
    domain: str
    split: Split
    ids: NDArray[np.int64]
    pictures: Pictures | None = None
    assistant: NDArray[np.bool_] | None = None

    @property
    def images(self) -> NDArray[np.bool_]:
        """bool [tokens]: which of its tokens stand for images. No model is trained to predict those."""
        return np.zeros(len(self.ids), bool) if self.pictures is None else self.pictures.stand_ins(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedCorpus:
    """All samples of a run, with the provenance of the text. read_by: what of the model made token ids of it."""

    samples: tuple[TokenizedSample, ...]
    info: CorpusInfo
    read_by: frozenset[InputPart] = frozenset()

    def sample_infos(self) -> list[SampleInfo]:
        """The samples as a profile lists them."""
        return [SampleInfo(id=s.id, domain=s.domain, split=s.split, tokens=len(s.ids)) for s in self.samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReaders:
    """What makes token ids of rows. tokenizer: the model's own.

    source: the tokenizer that the rows' token ids are of, where it is not the model's: they are decoded with it,
    special tokens included, and tokenized like text. processor: what makes images and their text ready for the model;
    needed where rows have images.
    """

    tokenizer: Any
    source: Any = None
    processor: Any = None


def tokenize(
    corpus: Corpus,
    readers: TextReaders,
    *,
    vocab_size: int,
    context_length: int | None,
    max_length: int,
    samples: int | None = None,
    seed: int = 0,
    special_tokens: SpecialTokens = "auto",
) -> TokenizedCorpus:
    """Tokenize, split and cut a corpus. samples: how many rows to take, fairly over domains; None for all.

    Raises CorpusError for a row without tokens, with ids outside the vocabulary, that the chat template refuses, or
    whose images do not fit into `max_length`.
    """
    limit = min(max_length, context_length or max_length)
    chosen = sorted(stratified(corpus.rows, seed)[:samples]) if samples else list(range(len(corpus.rows)))
    rows = [corpus.rows[i] for i in chosen]
    taken: list[TokenizedSample] = []
    noted: Counter[str] = Counter()
    truncated = 0
    splits = _splits(corpus, rows, seed)
    named = getattr(readers.tokenizer, "name_or_path", "") or "the model"
    with templates_apart(f"{named}: chat template"):
        encodings = _encodings(corpus, rows, chosen, readers, special_tokens)
        for index, (row, split, (label, encoded)) in enumerate(zip(rows, splits, encodings, strict=True)):
            _check_fit(encoded, vocab_size, limit, f"{corpus.spec}: {label}")
            truncated += len(encoded.ids) > limit
            noted.update(encoded.notes)
            taken.append(
                TokenizedSample(
                    index=index,
                    id=label,
                    domain=row.domain,
                    split=split,
                    ids=encoded.ids[:limit],
                    pictures=encoded.pictures,
                    assistant=encoded.assistant,
                )
            )
    source, tokenizer = readers.source, readers.tokenizer
    return TokenizedCorpus(
        samples=tuple(taken),
        read_by=_read_by(rows, readers, special_tokens),
        info=CorpusInfo(
            spec=corpus.spec,
            name=corpus.name,
            sha256=digest(rows),
            truncated=truncated,
            max_length=max_length,
            seed=seed,
            revision=corpus.revision,
            special_tokens=special_tokens,
            tokenizer=source.name_or_path if source is not None else None,
            available=len(corpus.rows) if len(chosen) < len(corpus.rows) else None,
            notes=[*corpus.notes, *_chat_notes(rows, tokenizer, special_tokens), *_counted(noted, tokenizer)],
            **_sizes(taken),
            **repeats_of(taken, tokenizer).counts(),
        ),
    )


def _read_by(rows: Sequence[CorpusRow], readers: TextReaders, special_tokens: SpecialTokens) -> frozenset[InputPart]:
    """What of the model stood between these rows and their token ids."""
    parts: set[InputPart] = set()
    for row in rows:
        if row.pictures:
            parts |= {"processor", "tokenizer"}
        elif not row.input_ids or readers.source is not None:
            parts.add("tokenizer")
        if row.messages and special_tokens == "auto":
            parts.add("chat_template")
    return frozenset(parts)


def _encodings(
    corpus: Corpus,
    rows: Sequence[CorpusRow],
    places: Sequence[int],
    readers: TextReaders,
    special_tokens: SpecialTokens,
) -> Iterator[tuple[str, Encoded]]:
    """Label and token ids of each row, one at a time: uncut, a corpus of texts would not fit in memory."""
    for row, place in zip(rows, places, strict=True):
        label = row.id or f"row-{place + 1}"
        yield label, _encode(row, readers, special_tokens, f"{corpus.spec}: {label}")


def _splits(corpus: Corpus, rows: Sequence[CorpusRow], seed: int) -> list[Split]:
    """A split for every row. Raises CorpusError where all are in one."""
    splits = assign(rows, seed)
    if len(set(splits)) < 2:
        raise CorpusError(
            f"every sample is in the {splits[0]} split",
            where=corpus.spec,
            hint="scales come from one split and errors from the other: name both, or leave `split` out",
        )
    return splits


def _sizes(samples: Sequence[TokenizedSample]) -> dict[str, Any]:
    """How much text a corpus holds, in all, by split and by domain: fields of its `CorpusInfo`."""
    return {
        "samples": len(samples),
        "tokens": sum(len(sample.ids) for sample in samples),
        "calibration": _count([s for s in samples if s.split == "calibration"]),
        "evaluation": _count([s for s in samples if s.split == "evaluation"]),
        "domains": {
            domain: _count([s for s in samples if s.domain == domain]) for domain in sorted({s.domain for s in samples})
        },
        "images": sum(sample.pictures is not None for sample in samples),
    }


def _check_fit(encoded: Encoded, vocab_size: int, limit: int, where: str) -> None:
    """Raises CorpusError for ids outside the vocabulary, for none, and where images are cut off by the limit."""
    _check(encoded.ids, vocab_size, where=where)
    if encoded.pictures:
        encoded.pictures.check(encoded.ids, limit)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row's token ids, int64 [tokens], uncut. assistant, pictures: as in TokenizedSample.

    notes: keys of what is to be counted.
    """

    ids: NDArray[np.int64]
    assistant: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()
    pictures: Pictures | None = None


def _encode(row: CorpusRow, readers: TextReaders, special_tokens: SpecialTokens, where: str) -> Encoded:
    tokenizer, source = readers.tokenizer, readers.source
    if row.pictures:
        pictures = Pictures(row, readers.processor, special_tokens, where)
        return Encoded(pictures.ids(), pictures=pictures)
    if row.input_ids and source is None:
        return Encoded(np.asarray(row.input_ids, np.int64))
    if row.messages and tokenizer.chat_template and special_tokens == "auto":
        chat = render(row, tokenizer, where)
        return Encoded(chat.ids, assistant_tokens(chat.turns, chat.ids, tokenizer, chat.tools), chat.left_out)
    text = row.text
    if row.messages:
        text = plain_chat(row.messages)
    elif row.input_ids:
        # An id beyond the vocabulary would be decoded to nothing, in silence.
        _check(np.asarray(row.input_ids, np.int64), len(source), where)
        text = source.decode(row.input_ids)
    ids, once = text_ids(str(text), tokenizer, special_tokens)
    return Encoded(ids, None, (*(["once"] if once else []), *(["plain tools"] if row.offered() else [])))


def text_ids(text: str, tokenizer: Any, special_tokens: SpecialTokens) -> tuple[NDArray[np.int64], bool]:
    """Token ids of a text, and whether special tokens that it begins or ends with were not written a second time.

    A text that was saved with the tokens that its tokenizer adds (`<s>Once upon a time`) is given them once: no model
    was trained on two first tokens.
    """

    def encode(special: bool) -> list[int]:
        return list(tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"])

    if special_tokens == "none":
        return np.asarray(encode(False), np.int64), False
    encoded_ids = encode(True)
    most = len(tokenizer("", verbose=False, add_special_tokens=True)["input_ids"])
    if (
        not encoded_ids
        or max(encoded_ids[: most + 1].count(encoded_ids[0]), encoded_ids[-most - 1 :].count(encoded_ids[-1])) < 2
    ):
        return np.asarray(encoded_ids, np.int64), False
    bare = encode(False)
    added = len(encoded_ids) - len(bare)
    first = next((n for n in range(added + 1) if bare and encoded_ids[n : n + len(bare)] == bare), None)
    if not added or first is None:
        return np.asarray(encoded_ids, np.int64), False
    before, after = encoded_ids[:first], encoded_ids[first + len(bare) :]
    twice_before = bool(before) and bare[: len(before)] == before
    twice_after = bool(after) and bare[-len(after) :] == after
    once = [*([] if twice_before else before), *bare, *([] if twice_after else after)]
    return np.asarray(once, np.int64), twice_before or twice_after


def _counted(noted: Counter[str], tokenizer: Any) -> list[str]:
    token = tokenizer.bos_token or tokenizer.eos_token or "[CLS]"
    return [text.format(count=noted[key], token=token) for key, text in _NOTES.items() if noted[key]]


def _chat_notes(rows: Sequence[CorpusRow], tokenizer: Any, special_tokens: SpecialTokens) -> list[str]:
    if not any(row.messages and not row.pictures for row in rows):
        return []
    if special_tokens == "none":
        return [_BARE]
    return [] if tokenizer.chat_template else [_NO_TEMPLATE]


def _check(ids: NDArray[np.int64], vocab_size: int, where: str) -> None:
    if not len(ids):
        raise CorpusError("sample has no tokens", where=where, hint="remove the row")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise CorpusError(
            f"token id {outside[0]} is outside the vocabulary of {vocab_size}",
            where=where,
            hint="give ids of this model's tokenizer, text, or with --corpus-tokenizer the tokenizer that they are of",
        )


def _count(samples: Sequence[TokenizedSample]) -> SplitInfo:
    return SplitInfo(samples=len(samples), tokens=sum(len(sample.ids) for sample in samples))
