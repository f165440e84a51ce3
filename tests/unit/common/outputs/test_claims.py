"""No output is an input of the same command, in any spelling; nor a device, a pipe, a socket or a link."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from quantaudit.common.outputs.claims import Output, check_inputs, claimed
from quantaudit.errors import OutputError


def claim(out: Path, inputs: dict[str, Path], *, folder: bool = False, writes: tuple[str, ...] | None = None) -> None:
    with claimed([Output(option="--out", path=out, folder=folder, writes=writes)], inputs):
        pass


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.safetensors"
    path.write_bytes(b"hours")
    return path


def spelled(profile: Path) -> Path:
    return profile.parent / "." / "x" / ".." / profile.name


def hard_link(profile: Path) -> Path:
    os.link(profile, profile.with_name("hard"))
    return profile.with_name("hard")


def through_a_linked_folder(profile: Path) -> Path:
    (profile.parent / "link").symlink_to(profile.parent)
    return profile.parent / "link" / profile.name


@pytest.mark.parametrize("other", [lambda path: path, spelled, hard_link, through_a_linked_folder])
def test_a_file_is_never_written_over_itself(profile: Path, other: Callable[[Path], Path]) -> None:
    (profile.parent / "x").mkdir()
    with pytest.raises(OutputError, match="an input of this command") as caught:
        claim(other(profile), {"--profile": profile})
    assert str(profile) in str(caught.value)
    assert str(other.__name__ and caught.value.where).startswith("--out ")


def test_an_input_that_is_a_link_to_the_output_counts_too(profile: Path) -> None:
    (profile.parent / "link").symlink_to(profile)
    with pytest.raises(OutputError, match="an input of this command"):
        claim(profile, {"--profile": profile.parent / "link"})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "sub/config.json"])
def test_a_file_of_a_folder_that_is_read_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / name).write_text("{}")
    with pytest.raises(OutputError, match="a file of MODEL"):
        claim(tmp_path / "model" / name, {"MODEL": tmp_path / "model"})
    claim(tmp_path / "model" / "new", {"MODEL": tmp_path / "model"})


def test_weights_that_a_model_folder_links_to_are_its_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "blob").write_bytes(b"w")
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blob")
    with pytest.raises(OutputError, match="a file of MODEL"):
        claim(tmp_path / "blob", {"MODEL": tmp_path / "model"})


@pytest.mark.parametrize(("out", "fault"), [("models/m", "itself"), ("models", "around"), (".", "around")])
def test_a_folder_that_is_or_contains_the_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, fault: str
) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=fault):
        claim(Path(out), {"MODEL": Path("models/m")}, folder=True, writes=("card.json",))
    claim(Path("models/m/card"), {"MODEL": Path("models/m")}, folder=True, writes=("card.json",))


def test_only_what_a_folder_gets_matters_where_that_is_known(profile: Path) -> None:
    folder = profile.parent
    claim(folder, {"RECIPE": profile}, folder=True, writes=("card.json", "assets/"))
    with pytest.raises(OutputError, match=r"its own profile\.safetensors"):
        claim(folder, {"--profile": profile}, folder=True, writes=("card.json", "profile.safetensors"))
    with pytest.raises(OutputError, match="around RECIPE"):
        claim(folder, {"RECIPE": profile}, folder=True)


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    outputs = [Output(option="--out", path=tmp_path / "a"), Output(option="--ref", path=tmp_path / "." / "a")]
    with pytest.raises(OutputError, match="is what --out writes too"), claimed(outputs, {}):
        pass


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is a pipe"


def unix_socket(path: Path) -> str:
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    return "is a socket"


def link(path: Path) -> str:
    path.symlink_to(path.with_name("elsewhere"))
    return "symbolic link to .*elsewhere"


@pytest.mark.parametrize("make", [pipe, unix_socket, link])
@pytest.mark.parametrize("folder", [True, False])
def test_only_files_and_folders_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], str], folder: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    fault = make(tmp_path / "out")
    with pytest.raises(OutputError, match=fault):
        claim(tmp_path / "out", {}, folder=folder)


def test_a_device_is_refused() -> None:
    with pytest.raises(OutputError, match="is a device"):
        claim(Path("/dev/null"), {})


def test_inputs_found_on_the_way_are_checked(profile: Path) -> None:
    with claimed([Output(option="--out", path=profile)], {}):
        check_inputs({"the corpus": profile.with_name("other")})
        with pytest.raises(OutputError, match="the corpus"):
            check_inputs({"the corpus": profile})
    check_inputs({"the corpus": profile})


@pytest.mark.parametrize("name", ["x" * 5000, "org/name", "a\0b"])
def test_an_input_that_is_no_path_is_passed_by(tmp_path: Path, name: str) -> None:
    claim(tmp_path / "out", {"MODEL": Path(name)})


def test_a_claim_leaves_nothing_behind(tmp_path: Path) -> None:
    claim(tmp_path / "a" / "out", {})
    claim(tmp_path / "b", {}, folder=True)
    assert list(tmp_path.iterdir()) == []


def test_a_claimed_output_is_refused_to_others(tmp_path: Path) -> None:
    output = Output(option="--out", path=tmp_path / "card", folder=True)
    with claimed([output], {}), pytest.raises(OutputError, match="another run writes there"), claimed([output], {}):
        pass


@pytest.mark.parametrize("out", ["", ".", "/"])
def test_a_file_needs_a_name(out: str) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        claim(Path(out), {})
