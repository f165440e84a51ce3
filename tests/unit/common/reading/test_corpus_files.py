"""Corpus files of any size, read line by line; what would unpack or go on without end is refused."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest

from quantaudit.common.reading import corpus_files
from quantaudit.common.reading.corpus_files import read_lines, read_whole
from quantaudit.errors import CorpusError


def test_lines_end_as_text_files_end_them_and_separators_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree\u2028still\n\n\ufefflast".encode())
    assert list(read_lines(path)) == [(1, "one"), (2, "two"), (3, "three\u2028still"), (4, ""), (5, "last")]
    (tmp_path / "a.TXT.GZ").write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_lines(tmp_path / "a.TXT.GZ")) == list(read_lines(path))
    assert read_whole(path).startswith("one\ntwo\nthree")


def test_a_file_larger_than_memory_would_be_needs_the_memory_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(("word " * 200 + "\n") * 50_000)  # 50 MB
    tracemalloc.start()
    assert sum(1 for _ in read_lines(path)) == 50_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_line_without_end_is_refused_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_files, "LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text("x" * 1000 + "\n" + "y" * 1001)
    with pytest.raises(CorpusError, match="a line of more than 1,000 characters") as caught:
        list(read_lines(path))
    assert caught.value.where == f"{path}:2"
    monkeypatch.setattr(corpus_files, "WHOLE", 1000)
    with pytest.raises(CorpusError, match="more than 1,000 characters in one JSON list"):
        read_whole(path)


def test_a_gzip_bomb_is_refused_and_repetitive_text_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_files, "UNPACKED", 1 << 20)
    bomb, text = tmp_path / "bomb.txt.gz", tmp_path / "text.txt.gz"
    bomb.write_bytes(gzip.compress(b"\n" * (16 << 20)))
    with pytest.raises(CorpusError, match="unpack to more than 200 times as many"):
        list(read_lines(bomb))
    lines = "".join(f"{number}: the same sentence again and again, numbered.\n" for number in range(50_000))
    text.write_bytes(gzip.compress(lines.encode()))
    assert sum(1 for _ in read_lines(text)) == 50_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.txt.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=words):
        list(read_lines(tmp_path / name))


def test_a_pipe_is_no_corpus(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(CorpusError, match="a pipe, not a file"):
        list(read_lines(tmp_path / "a.jsonl"))
