"""Compiling ahead happens once a machine, in a process that is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantaudit.stats.kernels import ahead


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of bytecode of a package in which nothing was compiled, by a process that leaves a file instead."""
    folder = tmp_path / "__pycache__"
    folder.mkdir()
    monkeypatch.setattr(ahead, "__file__", str(tmp_path / "ahead.py"))
    monkeypatch.setattr(ahead, "_COMPILE", f"open({str(folder / 'host_kernel.record.nbc')!r}, 'w').close()")
    monkeypatch.setattr(ahead, "_running", [])
    return folder


def test_it_is_done_once_and_waited_for(kept: Path) -> None:
    ahead.compile_ahead()
    ahead.compile_ahead()
    assert len(ahead._running) == 1
    ahead.wait_for_compiler()
    assert [path.name for path in kept.iterdir()] == ["host_kernel.record.nbc"]
    ahead.compile_ahead()
    assert not ahead._running


def test_it_is_not_begun_where_nothing_can_be_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ahead.os, "access", lambda *_: False)
        ahead.compile_ahead()
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(kept))  # where it is kept then, only numba knows
        ahead.compile_ahead()
    assert not ahead._running


def test_the_folder_of_bytecode_need_not_be_there(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_COMPILE", "pass")
    kept.rmdir()
    ahead.compile_ahead()
    assert len(ahead._running) == 1
    ahead.wait_for_compiler()


def test_without_processes_it_is_left_to_whoever_needs_it(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead.sys, "executable", str(kept / "no python"))
    ahead.compile_ahead()
    assert not ahead._running
    ahead.wait_for_compiler()


def test_what_is_compiled_is_what_is_loaded() -> None:
    """The name of the file that is looked for is the one that numba gives it."""
    from quantaudit.stats.kernels.host_kernel import compile_record

    compile_record()
    found = Path(ahead.__file__).with_name("__pycache__").glob("host_kernel.*.nbc")
    assert list(found)
