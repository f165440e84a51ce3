"""The assistant's tokens of a chat, under templates that mark nothing."""

from __future__ import annotations

import numpy as np
import pytest

from quantaudit.corpus.assistant_mask import assistant_tokens
from quantaudit.corpus.load import Corpus, CorpusRow
from quantaudit.corpus.tokens import TextReaders, tokenize
from tests.builders import VOCABULARY, tiny_tokenizer

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REWRITING = "{% for m in messages %}{% if loop.last %}LAST{% endif %}{{ m.content }};{% endfor %}"
REFUSING = "{% if messages | length < 3 %}{{ raise_exception('too short') }}{% endif %}{{ messages[0].content }}"
CHAT = [
    {"role": "user", "content": "What?"},
    {"role": "assistant", "content": "This."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "That."},
]


def rendered(template: str, turns: list[dict[str, str]]) -> tuple[object, np.ndarray]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer, np.asarray(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"], np.int64)


def test_the_assistants_turns_are_marked_up_to_their_ends() -> None:
    tokenizer, ids = rendered(CHATML, CHAT)
    mask = assistant_tokens(CHAT, ids, tokenizer)
    assert mask is not None
    assert len(mask) == len(ids)
    assert tokenizer.decode(ids[mask]) == "This.</>That.</>"  # type: ignore[attr-defined]


def test_a_chat_that_the_assistant_opens_is_marked_from_its_first_token() -> None:
    turns = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}]
    tokenizer, ids = rendered(CHATML, turns)
    mask = assistant_tokens(turns, ids, tokenizer)
    assert mask is not None
    assert tokenizer.decode(ids[mask]) == "<assistant>Hello.</>"  # type: ignore[attr-defined]


@pytest.mark.parametrize("template", [REWRITING, REFUSING])
def test_a_template_that_does_not_grow_with_the_chat_gives_no_mask(template: str) -> None:
    tokenizer, ids = rendered(template, CHAT)
    assert assistant_tokens(CHAT, ids, tokenizer) is None


def test_a_chat_without_an_answer_has_no_mask() -> None:
    tokenizer, ids = rendered(CHATML, CHAT[:1])
    assert assistant_tokens(CHAT[:1], ids, tokenizer) is None


def test_samples_of_a_corpus_carry_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    rows = (CorpusRow(messages=CHAT), CorpusRow(text="plain text"), CorpusRow(messages=CHAT))
    corpus = tokenize(
        Corpus(spec="c", name="c", sha256="0" * 64, rows=rows),
        TextReaders(tokenizer=tokenizer),
        vocab_size=VOCABULARY,
        context_length=None,
        max_length=35,
    )
    chat, text = corpus.samples[0], corpus.samples[1]
    assert text.assistant is None
    assert chat.assistant is not None
    assert len(chat.ids) == 35 < len(chat.assistant)
    assert tokenizer.decode(chat.ids[chat.assistant[:35]]).startswith("This.")
