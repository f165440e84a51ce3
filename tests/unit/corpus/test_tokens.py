"""Rows become the ids that the deployed model would see, and everything that was changed is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quantaudit.corpus.load import Corpus, CorpusRow
from quantaudit.corpus.tokens import TextReaders, TokenizedCorpus, tokenize
from quantaudit.errors import CorpusError
from tests.builders import BYTES, VOCABULARY, tiny_tokenizer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def corpus_of(*rows: dict[str, Any]) -> Corpus:
    return Corpus(spec="c.jsonl", name="c", sha256="d", rows=tuple(CorpusRow(**row) for row in rows))


def run(corpus: Corpus, *, chat_template: bool = True, source: Any = None, **options: Any) -> TokenizedCorpus:
    settings = {"vocab_size": VOCABULARY, "context_length": None, "max_length": 100, **options}
    return tokenize(
        corpus, TextReaders(tokenizer=tiny_tokenizer(chat_template=chat_template), source=source), **settings
    )


def texts(corpus: TokenizedCorpus) -> list[str]:
    return [tiny_tokenizer().decode(sample.ids) for sample in corpus.samples]


def test_text_is_tokenized_by_the_models_own_tokenizer() -> None:
    corpus = run(corpus_of({"text": "héllo"}, {"text": "b"}))
    assert texts(corpus) == ["héllo", "b"]
    assert corpus.samples[0].ids.dtype == np.int64
    assert len(corpus.samples[0].ids) == len("héllo".encode())


def test_special_tokens_of_the_tokenizer_are_added() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BYTES + 1)]
    )
    corpus = tokenize(
        corpus_of({"text": "ab"}, {"text": "c"}),
        TextReaders(tokenizer=tokenizer),
        vocab_size=VOCABULARY,
        context_length=None,
        max_length=9,
    )
    assert [sample.ids[0] for sample in corpus.samples] == [BYTES + 1, BYTES + 1]
    assert [len(sample.ids) for sample in corpus.samples] == [3, 2]


def test_chats_go_through_the_chat_template() -> None:
    corpus = run(corpus_of({"messages": CHAT}, {"text": "b"}))
    assert texts(corpus) == ["[user]hi[assistant]yes", "b"]
    assert corpus.info.notes == []


@pytest.mark.parametrize("chat_template", [True, False])
def test_parts_of_text_are_a_turns_text(chat_template: bool) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    corpus = corpus_of({"messages": [{"role": "user", "content": parts}]}, {"text": "b"})
    assert texts(run(corpus, chat_template=chat_template))[0] == ("[user]hi" if chat_template else "user: hi")


def test_a_missing_chat_template_is_noted_and_chats_become_plain_lines() -> None:
    corpus = run(corpus_of({"messages": CHAT}, {"text": "b"}), chat_template=False)
    assert texts(corpus) == ["user: hi\nassistant: yes", "b"]
    assert len(corpus.info.notes) == 1
    assert "no chat template" in corpus.info.notes[0]


@pytest.mark.parametrize(
    ("template", "reason", "where"),
    [
        ("{% for m in %}", "chat template cannot be read: Expected an expression", "chat template"),
        ("{{ raise_exception('system first') }}", "chat template cannot write this chat: system first", "row-2"),
    ],
)
def test_a_chat_that_the_template_refuses_is_named(template: str, reason: str, where: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    corpus = corpus_of({"text": "b"}, {"messages": CHAT})
    options: Any = {"vocab_size": VOCABULARY, "context_length": None, "max_length": 99}
    with pytest.raises(CorpusError, match=reason) as caught:
        tokenize(corpus, TextReaders(tokenizer=tokenizer), **options)
    assert (caught.value.where or "").endswith(where)
    assert (
        texts(tokenize(corpus, TextReaders(tokenizer=tokenizer), special_tokens="none", **options))[1]
        == "user: hi\nassistant: yes"
    )


def test_nothing_is_noted_where_there_are_no_chats() -> None:
    assert run(corpus_of({"text": "a"}, {"text": "b"}), chat_template=False).info.notes == []


@pytest.mark.parametrize("chat_template", [True, False])
def test_text_next_to_an_empty_chat_is_text(chat_template: bool) -> None:
    corpus = run(corpus_of({"text": "a", "messages": []}, {"text": "b"}), chat_template=chat_template)
    assert texts(corpus) == ["a", "b"]


def test_ids_are_taken_as_they_are() -> None:
    corpus = run(corpus_of({"input_ids": [5, 0, VOCABULARY - 1]}, {"text": "b"}))
    assert corpus.samples[0].ids.tolist() == [5, 0, VOCABULARY - 1]


def test_ids_outside_the_vocabulary_are_refused_with_row_and_remedy() -> None:
    with pytest.raises(CorpusError, match=f"token id {VOCABULARY} is outside the vocabulary of {VOCABULARY}") as caught:
        run(corpus_of({"text": "a"}, {"text": "b"}, {"input_ids": [1, VOCABULARY]}))
    assert caught.value.where == "c.jsonl: row-3"
    assert caught.value.hint


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(CorpusError, match="outside the vocabulary of 5"):
        run(corpus_of({"text": "a"}, {"text": "b"}), vocab_size=5)


def test_a_row_that_tokenizes_to_nothing_is_refused() -> None:
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    with pytest.raises(CorpusError, match="no tokens") as caught:
        tokenize(
            corpus_of({"text": "xx", "id": "mine"}, {"text": "b"}),
            TextReaders(tokenizer=tokenizer),
            vocab_size=VOCABULARY,
            context_length=None,
            max_length=9,
        )
    assert caught.value.where == "c.jsonl: mine"


@pytest.mark.parametrize(
    ("max_length", "context_length", "limit"), [(4, None, 4), (4, 100, 4), (100, 6, 6), (8, 8, 8), (100, None, 100)]
)
def test_samples_are_cut_at_max_length_or_context_and_counted(
    max_length: int, context_length: int | None, limit: int
) -> None:
    rows = [{"text": "x" * n} for n in (1, 3, 4, 5, 6, 7, 8, 9, 20)]
    corpus = run(corpus_of(*rows), max_length=max_length, context_length=context_length)
    lengths = [len(row["text"]) for row in rows]
    assert [len(sample.ids) for sample in corpus.samples] == [min(length, limit) for length in lengths]
    assert corpus.info.truncated == sum(length > limit for length in lengths)
    assert corpus.info.max_length == max_length


def test_counts_add_up_over_splits_and_domains() -> None:
    rows = [{"text": "x" * (i + 1), "domain": "ab"[i % 2]} for i in range(11)]
    corpus = run(corpus_of(*rows))
    info = corpus.info
    assert (info.samples, info.tokens) == (11, 66)
    for parts in ([info.calibration, info.evaluation], list(info.domains.values())):
        assert sum(part.samples for part in parts) == 11
        assert sum(part.tokens for part in parts) == 66
    assert sorted(info.domains) == ["a", "b"]
    listed = [(s.split, s.tokens) for s in corpus.sample_infos()]
    assert listed == [(s.split, len(s.ids)) for s in corpus.samples]
    assert [s.index for s in corpus.samples] == list(range(11))


def test_a_smaller_number_of_samples_is_fair_to_domains_and_seeded() -> None:
    rows = [{"text": f"text {i}", "domain": "aaabbc"[i % 6]} for i in range(30)]
    corpus = run(corpus_of(*rows), samples=6)
    assert {domain: info.samples for domain, info in corpus.info.domains.items()} == {"a": 2, "b": 2, "c": 2}
    assert texts(corpus) == texts(run(corpus_of(*rows), samples=6))
    assert {tuple(texts(run(corpus_of(*rows), samples=6, seed=seed))) for seed in range(4)} != {tuple(texts(corpus))}
    assert {sample.split for sample in corpus.samples} == {"calibration", "evaluation"}


def test_rows_without_a_name_are_called_after_their_place_in_the_file() -> None:
    rows = [{"text": f"text {i}", **({"id": "named"} if i == 1 else {})} for i in range(5)]
    corpus = run(corpus_of(*rows))
    assert [sample.id for sample in corpus.samples] == ["row-1", "named", "row-3", "row-4", "row-5"]
    few = run(corpus_of(*rows), samples=3)
    assert [few.samples[k].id for k in range(3)] == [
        "named" if text == "text 1" else f"row-{int(text[-1]) + 1}" for text in texts(few)
    ]


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_a_corpus_of_one_split_only_is_refused(split: str) -> None:
    with pytest.raises(CorpusError, match=f"every sample is in the {split} split"):
        run(corpus_of({"text": "one", "split": split}, {"text": "two", "split": split}))


def test_numbers_serve_as_names() -> None:
    assert [sample.id for sample in run(corpus_of({"text": "one", "id": 7}, {"text": "two", "id": 8})).samples] == [
        "7",
        "8",
    ]


# Special tokens ------------------------------------------------------------------------------------------------------


def with_start_token() -> Any:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BYTES + 1)]
    )
    return tokenizer


def test_without_special_tokens_the_text_stands_alone_as_in_the_paper() -> None:
    corpus = corpus_of({"text": "ab"}, {"text": "c"})
    options: dict[str, Any] = {"vocab_size": VOCABULARY, "context_length": None, "max_length": 9}
    tokenizer = with_start_token()
    deployed = tokenize(corpus, TextReaders(tokenizer=tokenizer), **options)
    bare = tokenize(corpus, TextReaders(tokenizer=tokenizer), **options, special_tokens="none")
    assert [len(s.ids) for s in deployed.samples] == [3, 2]
    for sample, text in zip(bare.samples, ("ab", "c"), strict=True):
        assert sample.ids.tolist() == tokenizer.encode(text, add_special_tokens=False)
    assert (deployed.info.special_tokens, bare.info.special_tokens) == ("auto", "none")
    assert bare.info.notes == []


def test_without_special_tokens_chats_are_plain_lines_and_this_is_noted() -> None:
    corpus = run(corpus_of({"messages": CHAT}, {"text": "b"}), special_tokens="none")
    assert texts(corpus) == ["user: hi\nassistant: yes", "b"]
    assert len(corpus.info.notes) == 1
    assert "without the chat template" in corpus.info.notes[0]


def test_ids_are_taken_as_they_are_either_way() -> None:
    corpus = run(corpus_of({"input_ids": [BYTES + 1, 5]}, {"text": "b"}), special_tokens="none")
    assert corpus.samples[0].ids.tolist() == [BYTES + 1, 5]


def test_what_reading_left_out_and_the_revision_are_noted() -> None:
    rows = corpus_of({"text": "a"}, {"text": "b"}).rows
    corpus = run(Corpus(spec="o/n", name="o/n", sha256="d", rows=rows, revision="c0ffee", notes=("3 empty rows",)))
    assert (corpus.info.revision, corpus.info.notes, corpus.info.images) == ("c0ffee", ["3 empty rows"], 0)


# Ids of another tokenizer --------------------------------------------------------------------------------------------


def shifted_tokenizer() -> Any:
    """Byte tokens under other ids than the tests' own tokenizer gives them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    built = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=built, name_or_path="org/source")


def test_ids_of_another_tokenizer_are_decoded_and_tokenized_again() -> None:
    source = shifted_tokenizer()
    ids = source.encode("héllo")
    assert ids != tiny_tokenizer().encode("héllo")
    corpus = run(corpus_of({"input_ids": ids}, {"text": "b"}), source=source)
    assert texts(corpus) == ["héllo", "b"]
    assert corpus.info.tokenizer == "org/source"
    assert run(corpus_of({"input_ids": ids}, {"text": "b"})).info.tokenizer is None


def test_special_tokens_are_added_to_decoded_text_as_to_any_other() -> None:
    source, tokenizer = shifted_tokenizer(), with_start_token()
    corpus = corpus_of({"input_ids": source.encode("ab")}, {"text": "c"})
    options: dict[str, Any] = {"vocab_size": VOCABULARY, "context_length": None, "max_length": 9}
    readers = TextReaders(tokenizer=tokenizer, source=source)
    assert len(tokenize(corpus, readers, **options).samples[0].ids) == 3
    assert len(tokenize(corpus, readers, **options, special_tokens="none").samples[0].ids) == 2


def test_ids_outside_the_other_tokenizers_vocabulary_are_refused() -> None:
    with pytest.raises(CorpusError, match="token id 256 is outside the vocabulary of 256"):
        run(corpus_of({"input_ids": [1, 256]}, {"text": "b"}), source=shifted_tokenizer())
