"""Outside its section a README keeps every byte; twice is once; markers that form no section are named by line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.card.readme.document import BEGIN, END, decode, find_section, with_section
from quantaudit.errors import FormatError
from tests.readmes import READMES

LINES = [BEGIN, "## Section", "", "```bash", "vllm serve x", "```", END]
OTHER = [BEGIN, "## Another", "| a |", "|---|", END]
PIECES = ("# T", "", "text", "\n", "\r\n", "\r", "- x", "> q", "    code", "\ufeff", "---", "a: b", "|", "<div>", "  ")


def put(data: bytes, lines: list[str] = LINES) -> bytes:
    return with_section(decode(data, "README.md"), lines, "README.md").encode("utf-8")


def check_untouched(data: bytes) -> None:
    """Put, put again, replaced, and cut out again: what is outside is what was there."""
    once = put(data)
    assert put(once) == once
    assert put(put(once, OTHER)) == once
    text = once.decode()
    span = find_section(text, "README.md")
    assert span is not None
    before, after = text[: span.start], text[span.end :]
    assert before.encode().startswith(data)
    gap = before.encode()[len(data) :].decode()
    assert set(gap) <= {"\r", "\n"}
    assert after in ("", "\n", "\r\n", "\r")
    assert bool(after) == (data in (b"", "\ufeff".encode()) or data.endswith((b"\n", b"\r")))
    section = text[span.start : span.end]
    assert section.replace("\r\n", "\n").replace("\r", "\n") == "\n".join(LINES)


@pytest.mark.parametrize("name", READMES)
def test_nothing_outside_the_section_changes(name: str) -> None:
    check_untouched(READMES[name])


@pytest.mark.parametrize("name", READMES)
def test_a_section_in_the_middle_is_replaced_where_it_stands(name: str) -> None:
    head, tail = put(READMES[name]), READMES["badges"]
    newline = b"\r\n" if b"\r\n" in READMES[name] else b"\n"
    data = head + newline * 2 + tail
    span = find_section(decode(data, "r"), "r")
    assert span is not None
    text = data.decode()
    new = put(data, OTHER).decode()
    assert new.startswith(text[: span.start])
    assert new.endswith(text[span.end :])
    assert put(put(data, OTHER)) == put(data)


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_nothing_changes_outside_whatever_is_there(text: str) -> None:
    check_untouched(text.encode("utf-8"))


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (b"a\r\n\r\nb\r\n", "\r\n"),
        (b"a\r\nb", "\r\n"),
        (b"a\nb\r\nc\r\n", "\r\n"),
        (b"a\n", "\n"),
        (b"a", "\n"),
        (b"a\rb\r", "\r"),
    ],
)
def test_lines_end_as_those_of_the_file_do(data: bytes, ending: str) -> None:
    text = put(data).decode()
    span = find_section(text, "r")
    assert span is not None
    assert text[span.start : span.end] == ending.join(LINES)


def test_one_blank_line_stands_before_the_section() -> None:
    section = "\n".join(LINES)
    assert put(b"a").decode() == f"a\n\n{section}"
    assert put(b"a\n").decode() == f"a\n\n{section}\n"
    assert put(b"a\n\n").decode() == f"a\n\n{section}\n"
    assert put(b"").decode() == f"{section}\n"


BROKEN = {
    "a begin without an end": ("# T\n\n<!-- quantaudit:begin v1 -->\ntext\n", 3, "without its end"),
    "an end without a begin": ("# T\n<!-- quantaudit:end -->\n", 2, "without its begin"),
    "two begins": (f"{BEGIN}\n\n{BEGIN}\nx\n{END}\n", 3, "2 begin markers, the others on line 1"),
    "two ends": (f"{BEGIN}\n{END}\n\n{END}\n", 4, "2 end markers"),
    "an end before the begin": (f"{END}\n\nx\n\n{BEGIN}\n", 1, "before its begin marker on line 5"),
    "two sections": (f"{BEGIN}\nx\n{END}\n\n{BEGIN}\nx\n{END}\n", 5, "2 begin markers"),
    "nested": (f"{BEGIN}\n{BEGIN}\nx\n{END}\n{END}\n", 2, "2 begin markers"),
    "an end in a fence": (f"{BEGIN}\n```\n{END}\n```\n", 1, "without its end"),
    "of a later version": (f"<!-- quantaudit:begin v2 -->\n{END}\n", 1, "version 2"),
    "of no version": (f"<!-- quantaudit:begin -->\n{END}\n", 1, "no version"),
    "text after an end": (f"{BEGIN}\nx\n{END} more\n", 3, "end marker has text next to it"),
    "text before a begin": (f"x\n\nsee {BEGIN}\n\nx\n\n{END}\n", 3, "begin marker has text next to it"),
    "with CRLF": (f"# T\r\n\r\n{END}\r\n", 3, "without its begin"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_markers_that_form_no_section_are_named_by_line(name: str) -> None:
    text, line, words = BROKEN[name]
    with pytest.raises(FormatError, match=words) as error:
        with_section(text, LINES, "README.md")
    assert error.value.where == f"README.md:{line}"
    assert error.value.hint


UNCLOSED = {
    "a fence": ("# T\n\n```python\nx = 1\n", 3),
    "a comment": ("# T\n\ntext\n\n<!-- TODO\nmore\n", 5),
    "a fence of tildes after markers": (f"~~~\n{BEGIN}\n{END}\n", 1),
    "preformatted text": ("<pre>\nx\n\ny\n", 1),
}


@pytest.mark.parametrize("name", UNCLOSED)
def test_a_file_that_ends_inside_a_block_is_refused(name: str) -> None:
    text, line = UNCLOSED[name]
    with pytest.raises(FormatError, match="without an end") as error:
        with_section(text, LINES, "README.md")
    assert error.value.where == f"README.md:{line}"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("# Titel\n\nGrüße\n".encode("latin-1"), 3),
        ("# T\n".encode("utf-16"), 1),
        ("# T\n".encode("utf-16-le"), 1),
        (b"a\n\xff", 2),
        (b"a\nb\0", 2),
    ],
)
def test_what_is_not_utf_8_is_refused(data: bytes, line: int) -> None:
    with pytest.raises(FormatError, match="not UTF-8") as error:
        decode(data, "README.md")
    assert error.value.where == f"README.md:{line}"


@pytest.mark.parametrize(
    "text",
    [
        f"<!-- old:\n{END}\n",
        f"<pre>\n{BEGIN}\n</pre>\n",
        f"<div>\n<!--\n{END}\n</div>\n",
        f"> {BEGIN}\n",
        f"`{BEGIN}`\n",
        f"text {END}\n",
        f"```\n{BEGIN}\n```\n",
        f"    {BEGIN}\n",
    ],
)
def test_markers_inside_something_else_are_text(text: str) -> None:
    assert find_section(text, "r") is None


@pytest.mark.parametrize("text", [f"<div>\n{BEGIN}\nx\n{END}\n</div>\n", f"- a\n\n  {BEGIN}\n  x\n  {END}\n\nb\n"])
def test_markers_in_html_or_a_list_are_markers(text: str) -> None:
    once = with_section(text, LINES, "r")
    assert with_section(once, LINES, "r") == once
    assert once.startswith(text[: text.index(BEGIN)])
    assert once.endswith(text[text.index(END) + len(END) :])
