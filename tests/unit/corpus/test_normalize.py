"""Rows as people have them become the same samples in every format; others are refused with their place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from quantaudit.corpus.load import Corpus, load_corpus
from quantaudit.errors import CorpusError

Row = dict[str, Any]
CALL = {"type": "function", "id": "x", "function": {"name": "look", "arguments": {"query": "tea"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_jsonl(folder: Path, rows: list[Row]) -> Path:
    path = folder / "c.jsonl"
    path.write_text(lines(rows), encoding="utf-8")
    return path


def write_windows(folder: Path, rows: list[Row]) -> Path:
    path = folder / "w.jsonl"
    path.write_bytes(lines(rows).replace("\n", "\r\n").encode("utf-8-sig"))
    return path


def write_gzip(folder: Path, rows: list[Row]) -> Path:
    path = folder / "c.jsonl.gz"
    path.write_bytes(gzip.compress(lines(rows).encode("utf-8-sig")))
    return path


def write_json(folder: Path, rows: list[Row]) -> Path:
    path = folder / "c.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_parquet(folder: Path, rows: list[Row]) -> Path:
    path = folder / "c.parquet"
    parquet.write_table(
        pa.Table.from_pylist([dict.fromkeys(key for row in rows for key in row) | r for r in rows]), path
    )
    return path


FORMATS: list[Callable[[Path, list[Row]], Path]] = [write_jsonl, write_windows, write_gzip, write_json, write_parquet]


def said(corpus: Corpus) -> list[Any]:
    """Text, ids or turns, without the fields that are none."""
    return [
        row.text or row.input_ids or [m.model_dump(exclude_none=True) for m in row.messages or []]
        for row in corpus.rows
    ]


def load(folder: Path, *rows: Row, column: str = "") -> Corpus:
    return load_corpus(f"{write_jsonl(folder, list(rows))}{column and ':::' + column}")


# One form ------------------------------------------------------------------------------------------------------------

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "x"}
CHAT = [USER, ANSWER]
ALIKE: dict[str, tuple[Row, Any]] = {
    "messages": ({"messages": CHAT}, CHAT),
    "null content": ({"messages": [USER, {**CALLING, "content": None}, RESULT]}, [USER, CALLING, RESULT]),
    "arguments as JSON": (
        {"messages": [USER, {**CALLING, "tool_calls": [
            {**CALL, "function": {"name": "look", "arguments": '{"query": "tea"}'}}]}]},
        [USER, CALLING],
    ),
    "calls as JSON": ({"messages": [USER, {**CALLING, "tool_calls": json.dumps([CALL])}]}, [USER, CALLING]),
    "no arguments": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": ""}}]}]},
        [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}],
    ),
    "a function call of old": (
        {"messages": [USER, {"role": "assistant", "function_call": {"name": "look", "arguments": "{}"}},
                      {"role": "function", "name": "look", "content": "42"}]},
        [USER,
         {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}]},
         {"role": "tool", "name": "look", "content": "42"}],
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "ho"}]}]},
        [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "ho"}]}],
    ),
    "parts of other names": (
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                      {"role": "assistant", "content": [{"type": "output_text", "text": "yes"}]}]},
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]},
         {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}],
    ),
    "earlier turns": (
        {"instruction": "hi", "output": "yes", "history": [["a", "b"]]},
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, *CHAT],
    ),
    "a tool that returns nothing": (
        {"messages": [USER, CALLING, {"role": "tool", "content": None}]},
        [USER, CALLING, {"role": "tool", "content": ""}],
    ),
    "a chat in a string": ({"messages": json.dumps(CHAT)}, CHAT),
    "a chat in columns": ({"messages": {"role": ["user", "assistant"], "content": ["hi", "yes"]}}, CHAT),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
        CHAT,
    ),
    "ShareGPT with a system's column": (
        {"system": "Be brief.", "conversations": [{"from": "Human", "value": "hi"}, {"from": "GPT", "value": "yes"}]},
        [{"role": "system", "content": "Be brief."}, *CHAT],
    ),
    "ShareGPT with calls": (
        {"conversations": [{"from": "human", "value": "hi"},
                           {"from": "function_call", "value": '{"name": "look", "arguments": {"query": "tea"}}'},
                           {"from": "observation", "value": "42"}]},
        [USER, {"role": "assistant", "tool_calls": [
            {"type": "function", "function": {"name": "look", "arguments": {"query": "tea"}}}]},
         {"role": "tool", "content": "42"}],
    ),
    "conversations with roles": ({"conversations": CHAT}, CHAT),
    "a prompt and its completion": ({"prompt": "The sky is", "completion": " blue."}, "The sky is blue."),
    "chats in both": ({"prompt": [USER], "completion": [ANSWER]}, CHAT),
    "an instruction": ({"instruction": "hi", "input": "", "output": "yes"}, CHAT),
    "an instruction and its input": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        [{"role": "user", "content": "Add.\n1 2"}, {"role": "assistant", "content": "3"}],
    ),
    "a question": ({"question": "hi", "answer": "yes"}, CHAT),
    "a number for an answer": ({"question": "hi", "answer": 7}, [USER, {"role": "assistant", "content": "7"}]),
    "text before other columns": ({"text": "all of it", "prompt": "a", "completion": "b"}, "all of it"),
    "empty columns": ({"text": None, "messages": [], "question": "hi", "answer": "yes"}, CHAT),
}  # fmt: skip


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("kind", ALIKE)
def test_a_row_is_the_same_sample_in_every_format(
    tmp_path: Path, kind: str, write: Callable[[Path, list[Row]], Path]
) -> None:
    row, expected = ALIKE[kind]
    rows = [{"domain": "d", **row}, {"domain": None, "id": 7, **row}]
    corpus = load_corpus(str(write(tmp_path, rows)))
    assert said(corpus) == [expected, expected]
    assert [(actual.domain, actual.id) for actual in corpus.rows] == [("d", None), ("unlabelled", "7")]
    assert corpus.sha256 == load_corpus(str(write_jsonl(tmp_path, rows))).sha256


@pytest.mark.parametrize("kind", [name for name in ALIKE if "columns" not in name])
def test_a_streamed_dataset_gives_the_same_samples(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.0)
    row, expected = ALIKE[kind]
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder, [{"domain": 3, **row}] * 2).rename(folder / "train.jsonl")
    corpus = load_corpus(str(folder))
    assert said(corpus) == [expected, expected]
    assert corpus.sha256 == load(tmp_path, *[{"domain": "3", **row}] * 2).sha256


def test_how_content_was_made_of_other_columns_is_noted(tmp_path: Path) -> None:
    pair = {"question": "hi", "answer": "yes"}
    notes = load(tmp_path, pair, pair, {"text": "b"}).notes
    assert len(notes) == 1
    assert "of 2 samples question and answer were read" in notes[0]
    assert load(tmp_path, {"messages": CHAT}, {"text": "b"}).notes == ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "unlabelled"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (float("nan"), "unlabelled"),
        ("law", "law"),
        (True, "True"),
    ],
)
def test_a_domain_may_be_a_number_or_null(tmp_path: Path, value: Any, expected: str) -> None:
    assert load(tmp_path, {"text": "a", "domain": value}, {"text": "b"}).rows[0].domain == expected


def test_a_category_is_a_domain_where_there_is_none(tmp_path: Path) -> None:
    rows = load(tmp_path, {"text": "a", "category": "law"}, {"text": "b", "category": "law", "domain": "code"}).rows
    assert [row.domain for row in rows] == ["law", "code"]


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        TOOL,
        [TOOL["function"]],
        [{"type": "function", **TOOL["function"]}],
    ],  # type: ignore[dict-item]
)
@pytest.mark.parametrize("name", ["tools", "functions"])
def test_offered_tools_come_in_one_form(tmp_path: Path, tools: Any, name: str) -> None:
    corpus = load(tmp_path, {"messages": CHAT, name: tools}, {"messages": CHAT})
    assert corpus.rows[0].offered() == [TOOL]
    assert corpus.rows[1].offered() is None
    assert corpus.sha256 != load(tmp_path, {"messages": CHAT}, {"messages": CHAT}).sha256


def test_the_order_of_a_calls_fields_says_nothing(tmp_path: Path) -> None:
    turned = {"role": "assistant", "tool_calls": [dict(reversed(CALL.items()))]}
    actual = [load(tmp_path, {"messages": [USER, turn]}, {"text": "b"}).sha256 for turn in (CALLING, turned)]
    assert actual[0] == actual[1]
    other = {**CALL, "function": {"name": "look", "arguments": {"query": "coffee"}}}
    changed = {"messages": [USER, {**CALLING, "tool_calls": [other]}]}
    assert load(tmp_path, changed, {"text": "b"}).sha256 != actual[0]


# Chosen columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", FORMATS)
def test_a_nested_column_is_chosen_by_its_path(tmp_path: Path, write: Callable[[Path, list[Row]], Path]) -> None:
    row = {"body": {"messages": CHAT, "tools": [TOOL], "note": "n"}, "text": "not this"}
    corpus = load_corpus(f"{write(tmp_path, [row, row])}:::body.messages")
    assert said(corpus) == [CHAT, CHAT]
    assert corpus.rows[0].offered() == [TOOL]
    assert said(load_corpus(f"{write(tmp_path, [row, row])}:::body.note")) == ["n", "n"]
    assert said(load_corpus(f"{write(tmp_path, [row, row])}:::text")) == ["not this", "not this"]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("column", ["dialog", "conversations", "messages"])
def test_a_chosen_column_of_chats_is_read_as_any_other(
    tmp_path: Path, column: str, write: Callable[[Path, list[Row]], Path]
) -> None:
    row = {column: [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}], "text": "not this"}
    assert said(load_corpus(f"{write(tmp_path, [row, row])}:::{column}")) == [CHAT, CHAT]


REFUSED: dict[str, tuple[Row, str, str]] = {
    "two contents": ({"text": "a", "messages": CHAT}, "", "it has text and messages"),
    "no known column": ({"headline": "a", "story": "b"}, "", "it has: headline, story"),
    "half of a pair": ({"question": "a", "score": 1}, "", "it has: question, score"),
    "no such column": ({"text": "a", "story": "b"}, "body", "no column body; it has: text, story"),
    "nothing of that name inside": ({"story": {"a": "b"}}, "story.b", "no text"),
    "nothing inside": ({"story": "b"}, "story.b", "nothing inside called b"),
    "a null inside": ({"story": None}, "story.b", "no text"),
    "a column of numbers": ({"story": 3.5}, "story", "holds float"),
    "a column of texts": ({"story": ["a", "b"]}, "story", "holds list of str"),
    "an answer in parts": ({"question": "a", "answer": {"text": ["b"]}}, "", "answer holds dict"),
}


@pytest.mark.parametrize("write", [write_jsonl, write_gzip, write_json, write_parquet])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_names_the_columns_and_how_one_is_chosen(
    tmp_path: Path, kind: str, write: Callable[[Path, list[Row]], Path]
) -> None:
    row, column, message = REFUSED[kind]
    path = write(tmp_path, [row, row])
    with pytest.raises(CorpusError) as caught:
        load_corpus(f"{path}{column and ':::' + column}")
    assert message in caught.value.message
    assert str(path) in (caught.value.where or "")
    assert (
        ":::" in (caught.value.hint or "")
        or "column" in (caught.value.hint or "")
        or "text" in (caught.value.hint or "")
    )
    if not column and "answer" not in kind:
        assert f"{path}:::COLUMN" in (caught.value.hint or "")


SILENT: dict[str, list[Any]] = {
    "a user without content": [{"role": "user", "content": None}],
    "an assistant without content and calls": [USER, {"role": "assistant", "content": None, "tool_calls": []}],
    "a turn that is text": ["hi"],
    "a call that is text": [USER, {"role": "assistant", "tool_calls": ["look"]}],
    "a turn without role": [{"content": "hi"}],
    "a role that is a number": [{"role": 3, "content": "hi"}],
    "a part of an unknown kind": [{"role": "user", "content": [{"type": "input_audio", "audio": "…"}]}],
    "a part without text": [{"role": "user", "content": [{"type": "text"}]}],
    "content that is a number": [{"role": "user", "content": 3}],
    "tools that are text": [],
}


@pytest.mark.parametrize("kind", SILENT)
def test_a_chat_that_cannot_be_used_names_its_row(tmp_path: Path, kind: str) -> None:
    bad = {"messages": SILENT[kind]} if SILENT[kind] else {"messages": CHAT, "tools": "look"}
    with pytest.raises(CorpusError, match="row cannot be used: ") as caught:
        load(tmp_path, {"text": "fine"}, bad)
    assert caught.value.where == f"{tmp_path / 'c.jsonl'}:2"


@pytest.mark.parametrize("value", [7, 7.5, True, "hi", {"a": 1}, [[1]], [{"from": "gpt"}], [None]])
@pytest.mark.parametrize(
    "name",
    [
        "messages",
        "conversations",
        "tools",
        "question",
        "text",
        "input_ids",
        "history",
        "id",
        "system",
        "context",
        "image",
        "split",
        "domain",
        "completion",
        "category",
    ],
)
def test_no_value_of_any_kind_ends_in_anything_but_a_sample_or_a_refusal(tmp_path: Path, name: str, value: Any) -> None:
    contents = (
        {},
        {"answer": "b", "question": "a"},
        {"prompt": "a", "completion": "b"},
        {"conversations": CHAT},
        {"messages": CHAT},
    )
    for row in ({**content, name: value} for content in contents):
        try:
            assert len(load(tmp_path, row, row).rows) == 2
        except CorpusError as error:
            assert error.hint  # noqa: PT017 (both outcomes are right; any other exception fails the test)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.txt", "c.TXT", "c.txt.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_files_are_one_sample_a_line(tmp_path: Path, name: str, end: str, encoding: str) -> None:
    data = f"one{end}  {end}two \u2028 three{end}".encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert said(load_corpus(str(tmp_path / name))) == ["one", "two \u2028 three"]


def test_byte_order_marks_of_joined_files_are_no_text(tmp_path: Path) -> None:
    one = '{"text": "a"}\n'.encode("utf-8-sig")
    (tmp_path / "c.jsonl").write_bytes(one * 3)
    assert said(load_corpus(str(tmp_path / "c.jsonl"))) == ["a"] * 3


@pytest.mark.parametrize(
    "data",
    [b"plain", b"", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], gzip.compress(b"\xff", mtime=0)],
    # Compressed bytes hold the time, and every test process must collect the same names.
    ids=["not compressed", "empty", "cut off", "no UTF-8"],
)
def test_a_broken_gzip_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c.jsonl.gz").write_bytes(data)
    with pytest.raises(CorpusError) as caught:
        load_corpus(str(tmp_path / "c.jsonl.gz"))
    assert caught.value.where == str(tmp_path / "c.jsonl.gz")
    assert caught.value.hint


def test_a_json_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"text": "a"}')
    with pytest.raises(CorpusError, match="not a list of rows"):
        load_corpus(str(tmp_path / "c.json"))


def test_a_number_too_long_for_python_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": "b", "n": ' + "9" * 5000 + "}\n")
    with pytest.raises(CorpusError, match="not JSON") as caught:
        load_corpus(str(tmp_path / "c.jsonl"))
    assert caught.value.where == f"{tmp_path / 'c.jsonl'}:2"


def test_images_in_a_table_are_noted_as_unread(tmp_path: Path) -> None:
    rows = [{"text": "a", "image": "a.png"}] * 2
    assert "column image of the dataset was not read" in load_corpus(str(write_parquet(tmp_path, rows))).notes[0]
