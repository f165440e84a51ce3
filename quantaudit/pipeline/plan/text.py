"""The samples of a corpus as tokens for a model of which there may be a configuration alone."""

from __future__ import annotations

import zlib
from typing import Any

from quantaudit.common.logs import compiled_prints_aside
from quantaudit.corpus.load import Corpus
from quantaudit.corpus.tokens import TextReaders, TokenizedCorpus, tokenize
from quantaudit.errors import ModelError, UsageError
from quantaudit.model.loading.checkpoint import Checkpoint
from quantaudit.model.loading.load import load_tokenizer
from quantaudit.settings import CorpusSpec

PIECE = 4
"""Bytes of UTF-8 in a token, about: vocabularies of 30,000 to 200,000 tokens need 3.5 to 4.5 for mixed text."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")


class Pieces:
    """Stands for a tokenizer that is not there: every PIECE bytes of a text are a token."""

    name_or_path = "pieces of text"
    chat_template = bos_token = eos_token = None

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        """Ids that are equal for equal pieces, and for few others."""
        data = text.encode()
        pieces = (data[start : start + PIECE] for start in range(0, len(data), PIECE))
        return {"input_ids": [zlib.crc32(piece) % self._vocabulary for piece in pieces]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Ids have no spelling of their own here."""
        return [f"<{number}>" for number in ids]


def count_tokens(
    corpus: Corpus, checkpoint: Checkpoint, spec: CorpusSpec, *, vocabulary: int, context: int | None
) -> tuple[TokenizedCorpus, bool]:
    """A corpus as its tokenizer cuts it, and whether that was there. Raises UsageError for samples with images."""
    if any(row.pictures for row in corpus.rows):
        raise UsageError("a plan counts text, not images", where=corpus.spec, hint="give a corpus of text")
    tokenizer: Any = Pieces(vocabulary)
    if exact := _has_tokenizer(checkpoint):
        tokenizer = _tokenizer(checkpoint)
    source = load_tokenizer(spec.corpus_tokenizer) if spec.corpus_tokenizer else None
    tokenized = tokenize(
        corpus,
        TextReaders(tokenizer=tokenizer, source=source),
        vocab_size=vocabulary,
        context_length=context,
        max_length=spec.max_length,
        samples=spec.samples,
        seed=spec.seed,
        special_tokens=spec.special_tokens,
    )
    return tokenized, exact


def _has_tokenizer(checkpoint: Checkpoint) -> bool:
    return checkpoint.gguf is not None or any((checkpoint.folder / name).is_file() for name in TOKENIZERS)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    if checkpoint.gguf is None:
        return load_tokenizer(str(checkpoint.folder))
    from transformers import AutoTokenizer

    try:
        with compiled_prints_aside():
            return AutoTokenizer.from_pretrained(checkpoint.folder, gguf_file=checkpoint.gguf)
    except Exception as error:  # parsers of other people's files raise whatever they like
        raise ModelError(f"tokenizer cannot be loaded: {error}", where=checkpoint.spec) from error
