"""Chat templates in a process of their own: the same text as in this one, and an end to those that have none."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers import tokenization_utils_base
from transformers.utils.chat_template_utils import render_jinja_template

from quantaudit.common.reading import template_child
from quantaudit.common.reading.templates import templates_apart
from quantaudit.errors import CorpusError

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
GENERATION = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
CHATS: list[dict[str, Any]] = [
    {"chat_template": PLAIN, "eos_token": "</s>"},
    {"chat_template": PLAIN + "{{ tools | tojson(indent=2) }}", "tools": [{"name": "für", "parameters": {"a": 1}}]},
    {"chat_template": GENERATION, "return_assistant_tokens_mask": True},
    {"chat_template": PLAIN, "eos_token": None, "add_generation_prompt": True},
]


def written(**arguments: Any) -> Any:
    chat = [{"role": "user", "content": "Wie spät?\n\u2028 \U0001f642"}, {"role": "assistant", "content": "Zwölf."}]
    return tokenization_utils_base.render_jinja_template(conversations=[chat], **arguments)


@pytest.mark.parametrize("arguments", CHATS)
def test_the_text_is_the_same_as_in_this_process(arguments: dict[str, Any]) -> None:
    expected = written(**arguments)
    with templates_apart("here"):
        assert tokenization_utils_base.render_jinja_template is not render_jinja_template
        first, again = written(**arguments), written(**arguments)
    assert first == again == expected
    assert tokenization_utils_base.render_jinja_template is render_jinja_template


def test_what_a_template_raises_is_raised_and_the_next_chat_is_written() -> None:
    with templates_apart("here"):
        with pytest.raises(ValueError, match="only users"):
            written(chat_template="{{ raise_exception('only users') }}")
        with pytest.raises(ValueError, match="undefined"):
            written(chat_template="{{ nothing.at.all }}")
        assert written(chat_template="{{ 1 + 1 }}")[0] == ["2"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not finish within"),
        ("{{ 10 ** (10 ** 10) }}", "does not finish within"),
        ("{{ 'x' * 10 ** 11 }}", "bytes of memory"),
        ("{% for i in range(9) %}{{ 'x' * 1000000 }}{% endfor %}", "writes more than"),
        ("{% for m in messages %}{{ m.content }}", "template cannot be read: Unexpected end of template"),
        ("{{ messages | frobnicate }}", "template cannot be read: No filter named 'frobnicate'"),
    ],
)
def test_a_template_without_end_is_stopped_and_named(template: str, words: str) -> None:
    start = time.monotonic()
    with templates_apart("models/m: chat template"):
        with pytest.raises(CorpusError, match=words) as caught:
            written(chat_template=template)
        assert caught.value.where == "models/m: chat template"
        begin = time.monotonic()
        with pytest.raises(CorpusError, match=words):
            written(chat_template=template)
        assert time.monotonic() - begin < 0.5
    assert time.monotonic() - start < 60


def test_the_child_is_started_with_the_first_chat_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("subprocess.Popen", never)
    with templates_apart("here"):
        pass


def test_answers_are_words_where_a_template_raises() -> None:
    def fails(**_: object) -> None:
        raise KeyError

    assert template_child.answer(fails, {}, KeyError) == {"error": "KeyError", "memory": False, "syntax": True}
    assert not template_child.answer(fails, {}, ValueError)["syntax"]
