"""Models are compared token by token where they have one tokenizer, and logits that stand for the same tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from quantaudit.compare.logits.tokens import check_reach, check_same_tokens, common_width
from quantaudit.corpus.tokens import TokenizedSample, text_ids
from quantaudit.errors import ModelError
from tests.builders import CHAT_TEMPLATE, VOCABULARY, sample, tiny_tokenizer

TEXTS = ("one two", "three  four")


def tokenized(tokenizer: Any) -> Sequence[TokenizedSample]:
    return [sample(text_ids(text, tokenizer, "auto")[0].tolist(), index=n) for n, text in enumerate(TEXTS)]


def check(theirs: Any) -> None:
    ours = tiny_tokenizer()
    check_same_tokens(ours, theirs, tokenized(ours), tokenized, where="other")


def without(tokenizer: Any, *, first: bool = False) -> Any:
    """A tokenizer that splits text in another way, or begins it with a special token."""
    from tokenizers import normalizers, processors

    rust = tokenizer.backend_tokenizer
    if first:
        rust.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
        )
    else:
        rust.normalizer = normalizers.Replace("  ", " ")
    return tokenizer


def swapped() -> Any:
    """A tokenizer with the same tokens, two of which have each other's number."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = tiny_tokenizer()
    vocabulary = made.get_vocab()
    vocabulary["o"], vocabulary["t"] = vocabulary["t"], vocabulary["o"]
    rust = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return type(made)(tokenizer_object=rust)


def test_the_same_tokenizer_and_one_with_another_template_will_do() -> None:
    check(tiny_tokenizer())
    other = tiny_tokenizer()
    other.chat_template = CHAT_TEMPLATE + "!"
    check(other)
    assert other.chat_template == CHAT_TEMPLATE + "!"


def test_a_tokenizer_that_differs_only_where_the_text_does_not_go_will_do() -> None:
    other = copy.deepcopy(tiny_tokenizer())
    other.add_tokens(["never seen"])
    check(other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (without(tiny_tokenizer()), "splits the text otherwise"),
        (without(tiny_tokenizer(), first=True), "splits the text otherwise"),
        (swapped(), "token 78 is|token 83 is"),
    ],
)
def test_other_tokens_are_refused(other: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        check(other)
    assert len(str(error.value).splitlines()) == 2


def test_widths_differ_only_beyond_both_tokenizers() -> None:
    tokenizers = (tiny_tokenizer(), tiny_tokenizer())
    assert common_width((300, 300), tokenizers, "other") == 300
    assert common_width((VOCABULARY, 300), tokenizers, "other") == VOCABULARY
    assert common_width((300, VOCABULARY), tokenizers, "other") == VOCABULARY
    tokenizers[1].add_tokens(["one more"])
    with pytest.raises(ModelError, match=r"300 logits .* 260, .* 260"):
        common_width((VOCABULARY, 300), tokenizers, "other")


def test_there_is_room_for_every_token() -> None:
    samples = [sample([1, 2, 9])]
    check_reach(samples, 10, 3, "other")
    check_reach(samples, 10, None, "other")
    with pytest.raises(ModelError, match="token 9"):
        check_reach(samples, 9, 3, "other")
    with pytest.raises(ModelError, match="--max-length 2"):
        check_reach(samples, 10, 2, "other")
