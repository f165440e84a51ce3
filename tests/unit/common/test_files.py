"""Files appear whole or not at all, and a place that cannot be written is found before hours are spent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantaudit.common import files
from quantaudit.errors import OutputError


def test_bytes_arrive_in_folders_that_did_not_exist(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.bin"
    files.write_bytes(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_text_is_written_as_utf8_with_its_line_ends(tmp_path: Path) -> None:
    files.write_text(tmp_path / "t", "é\r\n漢\n")
    assert (tmp_path / "t").read_bytes() == "é\r\n漢\n".encode()


def test_a_written_file_has_the_mode_of_an_ordinary_one(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "f"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        files.write_bytes(target, b"new")
    assert caught.value.where == str(target)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": b"old"}


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "f"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(target, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": b"old"}


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(OutputError):
        files.write_bytes(tmp_path / "f" / "g", b"")
    with pytest.raises(OutputError):
        files.check_directory(tmp_path / "f" / "g", force=True)


def test_a_full_folder_needs_force(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(OutputError, match="--force"):
        files.check_directory(tmp_path, force=False)
    files.check_directory(tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_checking_a_new_folder_creates_nothing(tmp_path: Path) -> None:
    files.check_directory(tmp_path / "new" / "folder", force=False)
    assert list(tmp_path.iterdir()) == []
