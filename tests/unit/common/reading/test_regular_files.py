"""Regular files within a size; pipes, devices, sockets and folders are refused without opening them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from quantaudit.common.reading.regular_files import UnreadableError, read_bytes, read_text, special_inside, special_kind


def test_a_file_is_read_up_to_its_limit_and_through_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    assert read_text(tmp_path / "link", 5) == "12345"
    with pytest.raises(UnreadableError, match="5 bytes, and at most 4 are read"):
        read_bytes(tmp_path / "a", 4)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for path, kind in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path / "socket", "a socket"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(UnreadableError) as caught:
            read_bytes(path, 100)
        assert str(caught.value) == f"{kind}, not a file"
        assert special_kind(path) == (None if path == tmp_path else kind)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none", 100)
    with pytest.raises(UnreadableError, match="no path"):
        read_bytes(Path("a\0b"), 100)
    assert special_kind(tmp_path / "none") is None


def test_a_pipe_is_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    assert special_inside(tmp_path) is None
    os.mkfifo(tmp_path / "a" / "b" / "pipe")
    assert special_inside(tmp_path) == (tmp_path / "a" / "b" / "pipe", "a pipe")


def test_a_file_that_says_it_is_empty_is_read_to_the_limit_only() -> None:
    with pytest.raises(UnreadableError, match="more than the 10 bytes"):
        read_bytes(Path("/proc/self/status"), 10)


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").symlink_to("model.bin")
    assert special_kind(tmp_path / "model.bin") == "a link that leads to itself"
    assert special_kind(tmp_path / "missing") is None
