"""Chats with tools, and texts that hold their special tokens already, as the deployed model would see them."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from quantaudit.corpus.load import Corpus, CorpusRow
from quantaudit.corpus.tokens import TextReaders, TokenizedCorpus, tokenize
from quantaudit.errors import CorpusError
from tests.builders import BYTES, VOCABULARY, tiny_tokenizer

BOS, EOS = BYTES + 1, BYTES + 2
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"q": 1}}}
USER = {"role": "user", "content": "hi"}
CALLING = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "42"}]

OFFERS = "{% if tools %}[{% for t in tools %}{{ t.function.name }}{% endfor %}]{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}({{ c.function.name }}{{ c.function.arguments | tojson }}){% endfor %}"
FULL = OFFERS + "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}" + CALLS + "{% endfor %}"
TEMPLATES = {
    "asks whether there is any": FULL,
    "writes whatever there is": OFFERS
    + "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    + CALLS
    + "{% endfor %}",
    "joins strings": OFFERS + "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}" + CALLS + "{% endfor %}",
    "asks whether it is none": OFFERS
    + "{% for m in messages %}<{{ m.role }}>{% if m.content is none %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "asks for calls first": OFFERS
    + "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "strips it": OFFERS + "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}" + CALLS + "{% endfor %}",
}


def run(*rows: dict[str, Any], tokenizer: Any, **options: Any) -> TokenizedCorpus:
    corpus = Corpus(spec="c.jsonl", name="c", sha256="d", rows=tuple(CorpusRow(**row) for row in rows))
    return tokenize(
        corpus,
        TextReaders(tokenizer=tokenizer),
        **{"vocab_size": VOCABULARY, "context_length": None, "max_length": 200, **options},
    )


def with_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def texts(corpus: TokenizedCorpus) -> list[str]:
    return [str(tiny_tokenizer().decode(sample.ids)) for sample in corpus.samples]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_call_without_content_is_written_by_templates_of_all_habits(template: str) -> None:
    tokenizer = with_template(TEMPLATES[template])
    corpus = run({"messages": CALLING, "tools": [TOOL]}, {"text": "b"}, tokenizer=tokenizer)
    assert texts(corpus)[0] == '[look]<user>hi<assistant>(look{"q": 1})<tool>42'
    assert corpus.info.notes == []


def test_a_chat_that_speaks_of_none_keeps_the_word() -> None:
    turns = [{"role": "user", "content": "None of it"}, *CALLING[1:]]
    assert "None of it" in texts(run({"messages": turns}, {"text": "b"}, tokenizer=with_template(FULL)))[0]


def test_the_assistants_tokens_are_marked_under_the_offered_tools() -> None:
    turns = [USER, {"role": "assistant", "content": "yes"}]
    sample = run({"messages": turns, "tools": [TOOL]}, {"text": "b"}, tokenizer=with_template(FULL)).samples[0]
    assert sample.assistant is not None
    assert tiny_tokenizer().decode(sample.ids[sample.assistant]) == "<assistant>yes"


def test_tools_and_calls_that_a_template_leaves_out_are_noted() -> None:
    plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    rows = ({"messages": CALLING, "tools": [TOOL]}, {"messages": [USER], "tools": [TOOL]}, {"messages": [USER]})
    notes = run(*rows, tokenizer=with_template(plain)).info.notes
    assert notes == [
        "the chat template does not write tools: those that 2 chats offer were left out",
        "the chat template does not write calls of tools: those in 1 chats were left out",
    ]


def test_plain_lines_hold_the_calls_and_note_the_tools() -> None:
    corpus = run({"messages": CALLING, "tools": [TOOL]}, {"text": "b"}, tokenizer=tiny_tokenizer(chat_template=False))
    assert texts(corpus)[0] == 'user: hi\nassistant: {"name": "look", "arguments": {"q": 1}}\ntool: 42'
    assert any("tools that 1 chats offer were left out" in note for note in corpus.info.notes)


def test_a_template_that_fails_either_way_is_refused_with_its_row() -> None:
    template = "{% for m in messages %}{% if m.tool_calls %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}x"
    with pytest.raises(CorpusError, match="cannot write this chat: no tools") as caught:
        run({"text": "b"}, {"messages": CALLING}, tokenizer=with_template(template))
    assert caught.value.where == "c.jsonl: row-2"


# Special tokens that a text holds already ----------------------------------------------------------------------------

ADDING = {
    "a first token": ("<s> $A", "<s>", ""),
    "a last token": ("$A </s>", "", "</s>"),
    "both": ("<s> $A </s>", "<s>", "</s>"),
    "two first tokens": ("<s> <unk> $A", "<s><unk>", ""),
    "none": (None, "", ""),
}


def adding(kind: str) -> Any:
    tokenizer = tiny_tokenizer()
    single = ADDING[kind][0]
    if single is not None:
        special = [("<s>", BOS), ("</s>", EOS), ("<unk>", BYTES + 3)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("kind", ADDING)
@pytest.mark.parametrize("text", ["Once", "aa", "a", "a<s>a", "<pad>"])
def test_tokens_that_the_tokenizer_writes_are_written_once(kind: str, text: str) -> None:
    tokenizer = adding(kind)
    _, before, after = ADDING[kind]
    corpus = run(
        {"text": text}, {"text": before + text}, {"text": text + after}, {"text": before + text + after},
        tokenizer=tokenizer,
    )  # fmt: skip
    expected = tokenizer(text)["input_ids"]
    assert [sample.ids.tolist() for sample in corpus.samples] == [expected] * 4
    written = [note for note in corpus.info.notes if "written once" in note]
    count = 0 if kind == "none" else 3 if before and after else 2
    assert [note.split()[0] for note in written] == ([str(count)] if count else [])
    bare = run({"text": before + text}, {"text": text}, tokenizer=tokenizer, special_tokens="none")
    assert bare.samples[0].ids.tolist() == tokenizer(before + text, add_special_tokens=False)["input_ids"]
    assert bare.info.notes == []


def test_a_template_that_writes_the_first_token_writes_it_alone() -> None:
    tokenizer = adding("a first token")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    corpus = run({"messages": [USER]}, {"text": "b"}, tokenizer=tokenizer)
    assert corpus.samples[0].ids.tolist().count(BOS) == 1
    assert corpus.info.notes == []


# The digest ----------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_samples_that_ran() -> None:
    rows = [{"text": f"text {i}"} for i in range(9)]
    tokenizer = tiny_tokenizer()
    whole = run(*rows, tokenizer=tokenizer)
    few = run(*rows, tokenizer=tokenizer, samples=4)
    chosen = [{"text": text} for text in texts(few)]
    assert few.info.sha256 == run(*chosen, tokenizer=tokenizer).info.sha256 != whole.info.sha256
    assert few.info.sha256 != run(*rows, tokenizer=tokenizer, samples=4, seed=1).info.sha256
    assert whole.info.sha256 == run(*rows, tokenizer=tokenizer, samples=9).info.sha256


LONGER = [
    {"role": "user", "content": "How far is the moon from here, and why does it not fall?"},
    {"role": "assistant", "content": "Some 384,400 kilometres; it falls, and misses."},
]
SHORT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("chat", [LONGER, SHORT, [USER]])
@pytest.mark.parametrize("template", ["A fixed text.", "{% for m in messages %}<{{ m.role }}> a b {% endfor %}"])
def test_a_template_that_writes_nothing_that_is_said_is_refused(template: str, chat: list[dict[str, str]]) -> None:
    with pytest.raises(CorpusError, match="writes nothing of what is said") as caught:
        run({"messages": chat}, {"text": "b"}, tokenizer=with_template(template))
    assert caught.value.where == "c.jsonl: row-1"


def test_a_template_that_leaves_turns_out_is_noted() -> None:
    first = "{{ messages[0].content }}"
    notes = run({"messages": LONGER}, {"messages": [USER]}, tokenizer=with_template(first)).info.notes
    assert notes == ["the chat template does not write every turn: in 1 chats the text of some was left out"]


@pytest.mark.parametrize("filter", ["upper", "trim", "tojson", "replace('moon', 'sun')", "truncate(12)"])
def test_a_template_that_changes_what_is_said_writes_it(filter: str) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | " + filter + " }}{% endfor %}"
    assert run({"messages": LONGER}, {"text": "b"}, tokenizer=with_template(template)).info.notes == []
