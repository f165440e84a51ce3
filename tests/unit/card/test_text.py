"""Numbers for people, and text that cannot act."""

from __future__ import annotations

import pytest

from quantaudit.card import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "—"),
        (0.0, "0"),
        (-0.0, "0"),
        (2.0, "2.00"),
        (25.64, "25.6"),
        (99.94, "99.9"),
        (99.96, "100"),
        (9.996, "10.0"),
        (0.9996, "1.00"),
        (0.5, "0.500"),
        (0.001, "0.00100"),
        (0.00099, "9.90×10⁻⁴"),
        (-15168.0, "−15,168"),
        (65504.0, "65,504"),
        (9999999.0, "9,999,999"),
        (3.4e38, "3.40×10³⁸"),
    ],
)
def test_number(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(None, "—"), (0.0, "0%"), (1.0, "100%"), (0.531, "53.1%"), (0.9999, ">99.9%"), (0.0001, "<0.1%"), (1.5, "150.0%")],
)
def test_percent_never_rounds_to_a_false_end(fraction: float | None, shown: str) -> None:
    assert text.percent(fraction) == shown


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        (134_515_008, "135M"),
        (7_615_616_512, "7.62B"),
        (999, "999"),
        (999_999_999, "1B"),
        (999_400_000, "999M"),
        (10**12, "1T"),
    ],
)
def test_size(parameters: int, shown: str) -> None:
    assert text.size(parameters) == shown


def test_visible_hides_nothing() -> None:
    assert text.visible("a\nb\tc\u202ed\u200be\x00\ufeff") == "a\\nb\\tc\\u202ed\\u200be\\u0000\\ufeff"
    assert text.visible("漢字 ｋ\u3000👩\u200d🔬") == "漢字 ｋ\u3000👩\u200d🔬"
    assert text.visible("\ud800\U000e0041") == "\\ud800\\U000e0041"
    assert text.visible("a" * 50, limit=10) == "a" * 9 + "…"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (None, "—"),
        (" the", "␣the"),
        ("  ", "␣␣"),
        ("", "(empty)"),
        ("\n", "\\n"),
        (" \n", "␣\\n"),
        ("x" * 99, "x" * 39 + "…"),
    ],
)
def test_token(token: str | None, shown: str) -> None:
    assert text.token(token) == shown


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("down_proj", "down\\_proj"),
        ("a|b", "a&#124;b"),
        ("`x`", "&#96;x&#96;"),
        ("<b>", "&#60;b&#62;"),
        ("[a](b)", "\\[a\\](b)"),
        ("&amp;", "&#38;amp;"),
        ("line\nbreak", "line&#92;nbreak"),
        ("- item", "&#45; item"),
        ("1. item", "1&#46; item"),
        ("1.5 items", "1.5 items"),
        ("# head", "&#35; head"),
        ("---", "&#45;--"),
        ("https://evil.example", "https&#8288;://evil.example"),
        ("me@evil.example", "me&#8288;@evil.example"),
    ],
)
def test_markdown(raw: str, escaped: str) -> None:
    assert text.markdown(raw) == escaped


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("layers.0.mlp", "`layers.0.mlp`"),
        ("<script>", "`<script>`"),
        ("|", "<code>&#124;</code>"),
        ("`", "<code>&#96;</code>"),
        ("\n", "`\\n`"),
        (" ", "<code>&#32;</code>"),
        (" a", "<code> a</code>"),
    ],
)
def test_markdown_code(raw: str, code: str) -> None:
    assert text.markdown_code(raw) == code


def test_prose_parts() -> None:
    assert text.prose_parts("add `x` to y") == [(False, "add "), (True, "x"), (False, " to y")]
    assert text.prose_parts("a ` alone") == [(False, "a ` alone")]


def test_sentence() -> None:
    assert text.sentence("It rounds to zero ") == "It rounds to zero."
    assert text.sentence("Why?") == "Why?"
    assert text.sentence("the model loads (it does)") == "The model loads (it does)."


@pytest.mark.parametrize(
    "kept", ["llm-compressor saved none", "model.layers.0 is", "`lm_head` is", "3 groups", "o_proj is", ""]
)
def test_names_begin_as_they_are_written(kept: str) -> None:
    assert text.capital(kept) == kept


def test_a_name_is_short_and_a_command_is_whole() -> None:
    name = f"model.layers.{'x' * 10_000}.down_proj"
    assert len(text.short(name)) == text.NAME
    assert text.short(name).startswith("model.layers.x")
    assert text.short(f"worst at {name} by far") == f"worst at {text.short(name)} by far"
    command = f"quantaudit report /models/{'y' * 200} --out card"
    assert text.short(command) == command
