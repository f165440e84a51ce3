"""Every kind of corpus file is read, and every bad one is refused with its place and a remedy."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from quantaudit.corpus.load import Corpus, load_corpus
from quantaudit.errors import CorpusError
from tests.vision import save_image

GOOD = '{"text": "a good row"}'


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(corpus: Corpus) -> list[Any]:
    return [row.text or row.input_ids or [m.model_dump() for m in row.messages or []] for row in corpus.rows]


def test_jsonl_rows_are_text_chats_or_token_ids(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = jsonl(
        tmp_path / "c.jsonl",
        {"text": "one", "domain": "law", "split": "evaluation", "id": "x"},
        {"messages": chat},
        {"input_ids": [3, 1, 2], "extra": {"ignored": True}},
    )
    corpus = load_corpus(str(path))
    assert contents(corpus) == ["one", chat, [3, 1, 2]]
    assert [(row.domain, row.split, row.id) for row in corpus.rows] == [
        ("law", "evaluation", "x"),
        ("unlabelled", None, None),
        ("unlabelled", None, None),
    ]
    assert (corpus.spec, corpus.name) == (str(path), "c.jsonl")


def test_empty_lines_of_jsonl_are_skipped_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\r\n{"text": "a"}\r\n   \r\n{"text": "b"}')
    assert contents(load_corpus(str(path))) == ["a", "b"]


@pytest.mark.parametrize(("name", "text"), [("c.jsonl", '{"text": "a"}\r\n{"text": "b"}\r\n'), ("c.txt", "a\r\nb\r\n")])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, text: str) -> None:
    plain, marked = tmp_path / "plain" / name, tmp_path / "marked" / name
    for path, encoding in ((plain, "utf-8"), (marked, "utf-8-sig")):
        path.parent.mkdir()
        path.write_bytes(text.encode(encoding))
    assert marked.read_bytes().startswith(b"\xef\xbb\xbf")
    assert load_corpus(str(marked)).rows == load_corpus(str(plain)).rows
    assert load_corpus(str(marked)).sha256 == load_corpus(str(plain)).sha256


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1e"])
def test_a_row_may_hold_unicode_line_separators(tmp_path: Path, separator: str) -> None:
    text = f"before{separator}after"
    path = jsonl(tmp_path / "c.jsonl", {"text": text}, {"text": "b"})
    if separator >= "\x20":  # JSON writes control characters escaped; these it writes as they are
        assert separator in path.read_text(encoding="utf-8")
    assert contents(load_corpus(str(path))) == [text, "b"]


def test_every_line_of_a_text_file_is_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("first\n\n  \nsecond \u2028 line\n", encoding="utf-8")
    assert contents(load_corpus(str(path))) == ["first", "second \u2028 line"]


def test_parquet_rows_are_read_with_their_nulls_left_out(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    chat = [{"role": "user", "content": "hi"}]
    columns = {
        "text": ["one", None, None],
        "messages": [None, chat, None],
        "input_ids": [None, None, [1, 2]],
        "domain": ["law", None, "code"],
        "split": [None, "calibration", None],
    }
    parquet.write_table(pa.table(columns), path)
    corpus = load_corpus(str(path))
    assert contents(corpus) == ["one", chat, [1, 2]]
    assert [row.domain for row in corpus.rows] == ["law", "unlabelled", "code"]
    assert [row.split for row in corpus.rows] == [None, "calibration", None]


def test_a_chat_turn_keeps_what_templates_may_read(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "ok", "reasoning": "because"}
    path = jsonl(tmp_path / "c.jsonl", {"messages": [turn]}, {"text": "b"})
    assert contents(load_corpus(str(path)))[0] == [turn]


@pytest.mark.parametrize("empty", [{"messages": []}, {"input_ids": []}, {"messages": None, "input_ids": None}])
def test_empty_columns_next_to_the_text_are_as_good_as_absent(tmp_path: Path, empty: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"text": "a", **empty}, {"text": "b"})
    assert contents(load_corpus(str(path))) == ["a", "b"]


# The digest ----------------------------------------------------------------------------------------------------------


def digest(folder: Path, *rows: Any) -> str:
    return load_corpus(str(jsonl(folder / "c.jsonl", *rows))).sha256


def test_the_digest_is_of_content_domain_and_split_alone(tmp_path: Path) -> None:
    rows = [{"text": "a", "domain": "d"}, {"text": "b", "split": "evaluation"}]
    base = digest(tmp_path, *rows)
    assert digest(tmp_path, {**rows[0], "id": "named", "source": "elsewhere"}, rows[1]) == base
    for changed in ({"text": "A", "domain": "d"}, {"text": "a", "domain": "e"}, {**rows[0], "split": "calibration"}):
        assert digest(tmp_path, changed, rows[1]) != base
    assert digest(tmp_path, *reversed(rows)) != base


def test_the_digest_does_not_depend_on_the_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("one\ntwo\n")
    parquet.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "c.parquet")
    expected = digest(tmp_path, {"text": "one"}, {"text": "two"})
    assert {load_corpus(str(tmp_path / name)).sha256 for name in ("c.txt", "c.parquet")} == {expected}


# Bad input -----------------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "no text": "{}",
    "another column only": '{"content": "text"}',
    "empty text": '{"text": ""}',
    "whitespace text": '{"text": " \\n\\t "}',
    "no messages": '{"messages": []}',
    "no ids": '{"input_ids": []}',
    "two contents": '{"text": "a", "messages": [{"role": "user", "content": "b"}]}',
    "text and ids": '{"text": "a", "input_ids": [1]}',
    "text that is a number": '{"text": 7}',
    "text that is null": '{"text": null}',
    "a lone surrogate": '{"text": "\\ud800"}',
    "messages that are text": '{"messages": "hi"}',
    "a message without role": '{"messages": [{"content": "b"}]}',
    "ids that are text": '{"input_ids": ["a"]}',
    "ids that are fractions": '{"input_ids": [1.5]}',
    "a negative id": '{"input_ids": [1, -1]}',
    "an id beyond any vocabulary": '{"input_ids": [99999999999999999999]}',
    "an unknown split": '{"text": "a", "split": "test"}',
    "a list": '["a"]',
    "a string": '"a"',
    "a number": "3",
    "null": "null",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_row_that_cannot_be_used_names_file_line_and_shape(tmp_path: Path, row: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(f"{GOOD}\n\n{BAD_ROWS[row]}\n{GOOD}\n")
    with pytest.raises(CorpusError) as caught:
        load_corpus(str(path))
    assert caught.value.where == f"{path}:3"
    assert '{"text": …}' in (caught.value.hint or "")


def test_two_contents_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"text": "a", "input_ids": [1]}, {"text": "b"})
    with pytest.raises(CorpusError, match="text and input_ids"):
        load_corpus(str(path))


@pytest.mark.parametrize("line", ["{", "{'text': 'a'}", "plain text", '{"text": "a"} {"text": "b"}', "[" * 100_000])
def test_a_line_that_is_not_json_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(CorpusError, match="not JSON") as caught:
        load_corpus(str(path))
    assert caught.value.where == f"{path}:2"
    assert caught.value.hint == "one JSON object a line"


@pytest.mark.parametrize(
    "line",
    ['{"text": "a", "text": "b"}', '{"messages": [{"role": "user", "role": "system", "content": "a"}]}'],
)
def test_a_key_that_is_given_twice_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(CorpusError, match=r"key '(text|role)' is given twice") as caught:
        load_corpus(str(path))
    assert caught.value.where == f"{path}:2"
    whole = tmp_path / "c.json"
    whole.write_text(f"[{GOOD}, {line}]")
    with pytest.raises(CorpusError, match=r"key '(text|role)' is given twice") as caught:
        load_corpus(str(whole))
    assert caught.value.where == str(whole)


def test_a_pipe_and_a_device_are_called_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.jsonl")
    for path, kind in ((tmp_path / "c.jsonl", "a pipe, not a file"), (Path("/dev/null"), "a device, not a file")):
        with pytest.raises(CorpusError, match=kind):
            load_corpus(str(path))


def test_a_bad_parquet_row_names_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    parquet.write_table(pa.table({"text": ["a", "b", " "]}), path)
    with pytest.raises(CorpusError) as caught:
        load_corpus(str(path))
    assert caught.value.where == f"{path}:3"
    assert caught.value.hint


NO_TEXT = pa.table({"text": pa.array([], pa.string())})
BAD_FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "empty": ("c.jsonl", lambda path: path.write_bytes(b""), "empty"),
    "blank lines only": ("c.jsonl", lambda path: path.write_text("\n \n"), "empty"),
    "an empty text file": ("c.txt", lambda path: path.write_bytes(b""), "empty"),
    "an empty table": ("c.parquet", lambda path: parquet.write_table(NO_TEXT, path), "empty"),
    "one row": ("c.jsonl", lambda path: path.write_text(GOOD), "one sample only"),
    "one line": ("c.txt", lambda path: path.write_text("one"), "one sample only"),
    "an unknown suffix": ("c.csv", lambda path: path.write_text("text\na\nb\n"), "unknown kind"),
    "no suffix": ("corpus", lambda path: path.write_text(GOOD), "unknown kind"),
    "a missing file": ("c.jsonl", lambda path: None, "no such corpus file"),
    "an empty folder": ("c.jsonl", lambda path: path.mkdir(), "doesn't contain any data files"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_corpus_is_named_with_a_remedy(tmp_path: Path, case: str) -> None:
    name, make, message = BAD_FILES[case]
    path = tmp_path / name
    make(path)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(path))
    assert caught.value.where == str(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.jsonl", b'{"text": "caf\xe9"}\n', "UTF-8"),
        ("c.txt", b"\xff\xfe\x00", "UTF-8"),
        ("c.parquet", b"PAR1 this is not a table", "Parquet"),
        ("c.parquet", b"", "Parquet"),
    ],
)
def test_a_file_of_another_encoding_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(path))
    assert caught.value.where == str(path)
    assert caught.value.hint


# Images --------------------------------------------------------------------------------------------------------------


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_image(path, seed, width=12, height=8)


def test_images_lie_relative_to_the_corpus_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [image(tmp_path / "pictures" / f"{i}.png", i) for i in range(3)]
    chat = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "pictures/1.png"},
                {"type": "text", "text": "or"},
                {"type": "image", "path": str(paths[2])},
            ],
        },
    ]
    jsonl(tmp_path / "c.jsonl", {"image": "pictures/0.png", "text": "what?"}, {"messages": chat}, {"text": "b"})
    monkeypatch.chdir(tmp_path)
    for spec in ("c.jsonl", str(tmp_path / "c.jsonl")):
        first, second, third = load_corpus(spec).rows
        assert [p.path.resolve() for p in first.pictures or ()] == paths[:1]
        assert [p.path.resolve() for p in second.pictures or ()] == paths[1:]
        assert third.pictures is None
        assert first.pictures is not None
        assert first.pictures[0].sha256 == hashlib.sha256(paths[0].read_bytes()).hexdigest()


def test_the_digest_is_of_an_images_content_and_not_of_its_place(tmp_path: Path) -> None:
    actual = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        image(tmp_path / name / f"{name}.png", seed)
        row = {"image": f"{name}.png", "text": "what?"}
        actual[name] = load_corpus(str(jsonl(tmp_path / name / "c.jsonl", row, {"text": "b"}))).sha256
    assert actual["a"] == actual["b"] != actual["c"]


def test_an_image_that_is_null_is_none(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"text": "a", "image": None}, {"text": "b"})
    assert load_corpus(str(path)).rows[0].pictures is None


def broken(path: Path) -> None:
    whole = image(path.with_name("whole.png")).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


BAD_IMAGES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "a missing file": (lambda path: None, {"image": "x.png", "text": "a"}, "no such image: .*x.png"),
    "text": (lambda path: path.write_text("no image"), {"image": "x.png", "text": "a"}, "cannot be read: .*x.png"),
    "an empty file": (lambda path: path.touch(), {"image": "x.png", "text": "a"}, "cannot be read: .*x.png"),
    "half an image": (broken, {"image": "x.png", "text": "a"}, "cannot be read: .*x.png"),
    "a folder": (lambda path: path.mkdir(), {"image": "x.png", "text": "a"}, "cannot be read: .*x.png"),
    "an address": (image, {"image": "https://x.org/x.png", "text": "a"}, "no path but 'https"),
    "bytes in JSON": (image, {"image": {"bytes": "iVBORw0"}, "text": "a"}, "no path but"),
    "no text": (image, {"image": "x.png"}, "no text"),
    "token ids": (image, {"image": "x.png", "input_ids": [1]}, "not next to token ids"),
    "messages": (image, {"image": "x.png", "messages": [{"role": "user", "content": "a"}]}, "stands next to `text`"),
    "a part without a path": (
        image,
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]},
        "no path but 'None'",
    ),
    "a part of an unknown kind": (image, {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "video"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_an_image_that_cannot_be_used_names_file_and_row(tmp_path: Path, case: str) -> None:
    make, row, message = BAD_IMAGES[case]
    make(tmp_path / "x.png")
    path = jsonl(tmp_path / "c.jsonl", {"text": "fine"}, row)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(path))
    assert caught.value.where == f"{path}:2"
    assert caught.value.hint
