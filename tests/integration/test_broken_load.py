"""The baseline of guessing on the demo: sane on a few short samples of any kind, beaten by no broken load."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantaudit.card.judge.simulated import chance
from quantaudit.corpus.load import Corpus, load_corpus
from quantaudit.corpus.tokens import TextReaders, tokenize
from quantaudit.model.loading.load import LoadedModel
from quantaudit.policy import load_policy
from quantaudit.stats.unigram import unigram_perplexity

pytestmark = pytest.mark.checkpoint

Ids = Sequence[NDArray[np.int64]]
SMALL = {"two texts": (2, False), "eight texts": (8, False), "two chats": (2, True), "six chats": (6, True)}


def ids_of(loaded: LoadedModel, count: int, chats: bool) -> Ids:
    built_in = load_corpus("builtin")
    rows = tuple(row for row in built_in.rows if bool(row.messages) == chats)[:count]
    corpus = Corpus(spec="part", name="part", sha256=built_in.sha256, rows=rows)
    size = loaded.info.vocab_size
    return [
        s.ids
        for s in tokenize(
            corpus, TextReaders(tokenizer=loaded.tokenizer), vocab_size=size, context_length=None, max_length=40
        ).samples
    ]


def over_limit(loaded: LoadedModel, samples: Ids) -> float:
    """The model's perplexity over what the default policy allows on these samples: above 1 is a finding."""
    losses = []
    for ids in samples:
        x = torch.from_numpy(np.ascontiguousarray(ids))[None]
        with torch.no_grad():
            logits = loaded.model(input_ids=x, use_cache=False).logits[0, :-1]
        losses.append(-logits.double().log_softmax(-1).gather(1, x[0, 1:, None])[:, 0])
    loss = torch.cat(losses)
    guessing = unigram_perplexity(samples, samples, loaded.info.vocab_size)
    limit = load_policy("default").perplexity_over_unigram.error * guessing * chance(len(loss))
    return math.exp(loss.mean()) / limit


@pytest.mark.parametrize("kind", SMALL)
def test_the_demo_clears_it_by_far_on_a_few_samples(demo_loaded: LoadedModel, kind: str) -> None:
    assert over_limit(demo_loaded, ids_of(demo_loaded, *SMALL[kind])) < 0.2


@pytest.mark.parametrize("kind", SMALL)
def test_another_tokenizers_ids_do_not(demo_loaded: LoadedModel, kind: str) -> None:
    """The demo's embeddings are tied: shuffling them is the same."""
    order = np.random.default_rng(0).permutation(demo_loaded.info.vocab_size)
    assert over_limit(demo_loaded, [order[ids] for ids in ids_of(demo_loaded, *SMALL[kind])]) > 1


def test_text_in_fragments_does_not(demo_loaded: LoadedModel) -> None:
    """What a wrongly converted tokenizer does, that of Gemma 3 from a GGUF: characters for words."""
    tokenizer = demo_loaded.tokenizer
    texts = [row.text for row in load_corpus("builtin").rows if row.text][:6]
    samples = [np.concatenate([tokenizer(c)["input_ids"] for c in text[:60]]).astype(np.int64) for text in texts]
    assert over_limit(demo_loaded, samples) > 1
