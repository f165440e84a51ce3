"""Files change as one, at whichever step a process is killed; files of others stay."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantaudit.common.outputs import file_set as sets
from quantaudit.errors import OutputError

OLD = {"card.json": b"old card", "card.md": b"old page", "old-shard": b"old", "mine.txt": b"mine", "sub/mine": b"mine"}
NEW = {
    "card.json": b"new card",
    "card.md": b"new page",
    "assets/a.png": b"new",
    "mine.txt": b"mine",
    "sub/mine": b"mine",
}
STEPS = ("mkdir", "open", "fsync", "replace", "rename", "unlink", "rmdir", "scandir")


class Killed(BaseException):
    """What stands for SIGKILL: nothing of the package may catch it, nor clean up after it."""


def content(folder: Path) -> dict[str, bytes]:
    """Every file that is not ours alone, by its name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in names.items() if not name.startswith(".quantaudit-")}


def filled(folder: Path) -> Path:
    for name, data in OLD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def change(folder: Path, recipe: Path) -> None:
    with sets.file_set(folder) as files:
        for name in ("card.json", "card.md", "assets/a.png"):
            files.write(name, NEW[name])
        files.write_outside(recipe, b"new recipe")
        files.remove("old-shard")


def killed_at(step: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether an act was cut off before its nth call to the system; after that no call has any effect, as in death."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, counted(getattr(os, name)))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        try:
            act()
        except Killed:
            return True
    return False


def test_a_kill_before_any_step_leaves_the_old_set_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for step in range(500):
        folder, recipe = filled(tmp_path / str(step) / "card"), tmp_path / str(step) / "recipe.yaml"
        recipe.write_bytes(b"old recipe")
        killed = killed_at(step, lambda folder=folder, recipe=recipe: change(folder, recipe), monkeypatch)  # type: ignore[misc]
        sets.finish(folder)
        found = content(folder)
        assert (found, recipe.read_bytes()) in ((OLD, b"old recipe"), (NEW, b"new recipe")), f"step {step}"
        seen.add(found == NEW)
        sets.remove_leftovers(folder, folder=True)
        sets.remove_leftovers(recipe, folder=False)
        change(folder, recipe)  # the next run
        assert content(folder) == NEW
        assert sorted(path.name for path in folder.iterdir()) == ["assets", "card.json", "card.md", "mine.txt", "sub"]
        assert sorted(path.name for path in folder.parent.iterdir()) == ["card", "recipe.yaml"]
        if not killed:
            break
    assert not killed
    assert step > 30
    assert seen == {True, False}


def test_a_finish_may_be_killed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(200):
        folder, recipe = filled(tmp_path / str(step) / "card"), tmp_path / str(step) / "recipe.yaml"
        with monkeypatch.context() as patch:
            patch.setattr(sets, "_carry_out", lambda _folder: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                change(folder, recipe)
        killed = killed_at(step, lambda folder=folder: sets.finish(folder), monkeypatch)  # type: ignore[misc]
        sets.finish(folder)
        assert (content(folder), recipe.read_bytes()) == (NEW, b"new recipe")
        if not killed:
            return
    raise AssertionError


def test_one_file_is_renamed_to_its_place(tmp_path: Path) -> None:
    with sets.file_set(tmp_path / "new") as files:
        files.write("a", b"1")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_the_permissions_of_a_file_that_is_replaced_stay(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"old")
        (tmp_path / name).chmod(0o640)
    with sets.file_set(tmp_path) as files:
        for name in names:
            files.write(name, b"new")
    assert [(tmp_path / name).read_bytes() for name in names] == [b"new"] * len(names)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names} == {0o640}


def test_an_error_inside_leaves_what_was_there(tmp_path: Path) -> None:
    folder = filled(tmp_path)

    def fail() -> None:
        with sets.file_set(folder) as files:
            files.write("card.json", b"new")
            files.write_outside(tmp_path / "other", b"new")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert content(folder) == OLD
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_folder_that_nothing_was_written_to_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), sets.file_set(tmp_path / "a" / "b"):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
@pytest.mark.parametrize("number", range(8))
def test_a_full_disk_leaves_what_was_there_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    folder, calls, real = filled(tmp_path / "card"), 0, getattr(os, call)

    def full(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, call, full)
    said = refusal(folder, tmp_path / "recipe.yaml")
    monkeypatch.undo()
    if calls <= number:  # there was room for everything
        assert (said, content(folder)) == (None, NEW)
        return
    assert said is not None
    assert "No space left on device" in said
    assert str(folder) in said
    kept = "new files are kept" in said
    assert ("unchanged" in said) != kept
    sets.finish(folder)
    assert content(folder) == (NEW if kept else OLD)


def refusal(folder: Path, recipe: Path) -> str | None:
    """What a change of a folder says where it cannot be written."""
    try:
        change(folder, recipe)
    except OutputError as error:
        return str(error)
    return None


def test_a_link_that_leads_out_is_refused_before_anything_changes(tmp_path: Path) -> None:
    folder, elsewhere = filled(tmp_path / "card"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "assets").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="link to another place"):
        change(folder, tmp_path / "recipe.yaml")
    assert list(elsewhere.iterdir()) == []
    assert (folder / "card.json").read_bytes() == b"old card"


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_changes(tmp_path: Path) -> None:
    folder = filled(tmp_path / "card")
    (folder / "card.md").unlink()
    (folder / "card.md").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        change(folder, tmp_path / "recipe.yaml")
    assert (folder / "card.json").read_bytes() == b"old card"


def test_a_file_that_is_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    folder = filled(tmp_path / "card")
    (tmp_path / "target").write_bytes(b"theirs")
    (folder / "card.md").unlink()
    (folder / "card.md").symlink_to(tmp_path / "target")
    change(folder, tmp_path / "recipe.yaml")
    assert (tmp_path / "target").read_bytes() == b"theirs"
    assert (folder / "card.md").read_bytes() == b"new page"


def test_a_decided_folder_from_elsewhere_reaches_nothing_outside(tmp_path: Path) -> None:
    folder, victim = filled(tmp_path / "card"), tmp_path / "victim"
    victim.write_bytes(b"theirs")
    (folder / sets.DECIDED / "files").mkdir(parents=True)
    plan = {"remove": ["../victim", str(victim)], "outside": [str(victim)]}
    (folder / sets.DECIDED / "plan.json").write_text(json.dumps(plan))
    sets.finish(folder)
    assert victim.read_bytes() == b"theirs"
    assert content(folder) == OLD


def test_what_cannot_be_finished_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "card")
    (folder / sets.DECIDED / "files").mkdir(parents=True)
    (folder / sets.DECIDED / "files" / "card.json").write_bytes(b"new card")

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(OutputError, match=r"killed while it replaced these files.*Read-only"):
        sets.finish(folder)
