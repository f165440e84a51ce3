"""What commands write, as users meet it: two at once, killed ones, and outputs that are inputs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantaudit import cli
from quantaudit.card.schema import load_card
from quantaudit.common.outputs.locks import Holder, holder_of
from quantaudit.common.resources import resource_dir
from tests.builders import save_checkpoint, tiny_model
from tests.command_line import run as command

STATIC = resource_dir("recipes") / "w8a8_static.yaml"
DYNAMIC = resource_dir("recipes") / "w8a8_dynamic.yaml"
PROGRAM = "import sys; from quantaudit import cli; sys.argv[0] = 'quantaudit'; cli.main()"


def started(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(folder: Path, *arguments: object) -> tuple[int, str]:
    """(exit code, everything said)."""
    process = started(folder, *arguments)
    said = process.communicate()[0]
    return process.returncode, said


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its text, and a report. Read only."""
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(folder / "model", tiny_model("mistral", num_hidden_layers=1))
    rows = [{"id": f"s{i}", "domain": "ab"[i % 2], "text": f"Sample {i}: {'words, ' * (i + 4)}end."} for i in range(6)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copy(STATIC, folder / "static.yaml")
    shutil.copy(DYNAMIC, folder / "dynamic.yaml")
    assert run(folder, *REPORT)[0] == 0
    return folder


TEXT = ("--corpus", "texts.jsonl", "--evaluation-tokens", "32")
REPORT = ("report", "model", *TEXT, "--schemes", "int8", "--out", "card")
CARD = ("--card", "card/card.json", *TEXT)
ADVISE = (*CARD, "--model", "model")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    shutil.copytree(base, tmp_path / "work")
    return tmp_path / "work"


def test_of_two_reports_into_one_folder_the_second_is_refused_with_the_name_of_the_first(folder: Path) -> None:
    first = started(folder, *REPORT, "--force", "--seed", "3")
    lock, holder = folder / "card" / ".quantaudit-run.lock", None
    deadline = time.monotonic() + 60
    while holder is None and time.monotonic() < deadline:
        holder = holder_of(lock)
        time.sleep(0.02)
    assert isinstance(holder, Holder)
    os.kill(first.pid, signal.SIGSTOP)  # so that it is still at work, however busy this machine is
    code, said = run(folder, *REPORT, "--force")
    os.kill(first.pid, signal.SIGCONT)
    assert (code, f"process {first.pid} on {holder.host}" in said) == (2, True), said
    assert "quantaudit report model" in said
    output = first.communicate()[0]
    assert first.returncode == 0, output
    assert load_card(folder / "card" / "card.json").corpus.seed == 3
    assert not [path.name for path in (folder / "card").iterdir() if path.name.startswith(".")]


def test_of_two_advices_at_once_neither_is_lost(folder: Path) -> None:
    runs = [
        started(
            folder, "advise", f"{name}.yaml", *ADVISE, "--no-smoothing", "--max-kl", "9", "--out", f"{name}-new.yaml"
        )
        for name in ("static", "dynamic")
    ]
    said = [process.communicate()[0] for process in runs]
    assert [process.returncode for process in runs] == [3, 3], said  # advice on a random model is inconclusive
    card = load_card(folder / "card" / "card.json")
    assert sorted(row.recipe for row in card.advice) == ["dynamic", "static"]
    assert {"static-new", "dynamic-new"} <= {row.name for row in card.simulation.recipes}  # type: ignore[union-attr]


def test_advice_on_a_card_that_was_replaced_meanwhile_is_not_added(folder: Path) -> None:
    """Both change as one: no recipe is written whose score is on no card."""
    from quantaudit.card.amend import amend_card
    from quantaudit.errors import OutputError

    path = folder / "card" / "card.json"
    before = path.read_bytes()
    with pytest.raises(OutputError, match="replaced by another report"):
        amend_card(path, lambda card: card, of="2001-01-01", outside={folder / "new.yaml": b"recipe"})
    assert path.read_bytes() == before
    assert not (folder / "new.yaml").exists()
    assert not [path.name for path in (folder / "card").iterdir() if path.name.startswith(".")]


def test_a_card_given_by_a_link_is_amended_where_it_lies(folder: Path) -> None:
    from quantaudit.card.amend import amend_card

    (folder / "link.json").symlink_to("card/card.json")
    card = load_card(folder / "card" / "card.json")
    amend_card(folder / "link.json", lambda card: card.model_copy(update={"advice": []}), of=card.created)
    assert (folder / "link.json").is_symlink()
    assert (folder / "card" / "card.json").is_file()


MISTAKES = [
    "measure model --corpus texts.jsonl --out model/model.safetensors",
    "measure model --corpus texts.jsonl --out texts.jsonl",
    "measure model --corpus texts.jsonl --out new --export-reference new",
    "measure model --corpus texts.jsonl --out new --export-reference model/config.json",
    "simulate model --profile card/profile.safetensors --out card/profile.safetensors",
    "simulate model --profile card/profile.safetensors --recipe static.yaml --out static.yaml",
    "simulate model --profile card/profile.safetensors --out texts.jsonl",
    "scales card/profile.safetensors --out ./card/../card/profile.safetensors",
    "merge card/profile.safetensors card/scales.safetensors --out card/scales.safetensors",
    "report model --corpus texts.jsonl --out model",
    "report model --corpus texts.jsonl --out .",
    "report model --corpus texts.jsonl --profile card/profile.safetensors --out card",
    "report model --corpus texts.jsonl --out link",
    "report model --corpus texts.jsonl --out pipe",
    "advise static.yaml --card card/card.json --model model --out static.yaml",
    "advise static.yaml --card card/card.json --model model --out card/card.json",
    "advise static.yaml --card card/card.json --model model --out card/profile.safetensors",
    "advise static.yaml --card card/card.json --model model --out texts.jsonl",
    "verify static.yaml model --card card/card.json --save model",
    "verify static.yaml model --card card/card.json --save card",
    "verify static.yaml model --card card/card.json --save .",
]


@pytest.mark.parametrize("line", MISTAKES)
def test_an_output_is_never_an_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to("card")
    os.mkfifo(folder / "pipe")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["quantaudit", *line.split(), "--force"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "unexpected" not in said
    assert any(word in said for word in ("an input of this command", "symbolic link", "is a pipe", "writes too")), said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_card_rendered_into_its_own_folder_stays(folder: Path) -> None:
    before = (folder / "card" / "card.json").stat()
    (folder / "card" / "card.html").write_text("old")
    assert run(folder, "render", "card/card.json", "--out", "card", "--force")[0] == 0
    assert (folder / "card" / "card.json").stat().st_ino == before.st_ino
    assert (folder / "card" / "card.html").read_text(encoding="utf-8").startswith("<!")


@pytest.mark.parametrize("verb", ["report", "render", "advise", "scales", "verify"])
def test_a_disk_that_is_full_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    lines = {
        "report": (*REPORT, "--force", "--seed", "3"),
        "render": ("render", "card/card.json", "--out", "page", "--force"),
        "advise": ("advise", "static.yaml", *ADVISE, "--no-smoothing", "--max-kl", "9", "--out", "new.yaml"),
        "verify": ("verify", "dynamic.yaml", "model", *CARD, "--save", "page", "--force"),
        "scales": ("scales", "card/profile.safetensors", "--out", "card/scales.safetensors", "--force"),
    }
    (folder / "page").mkdir()
    (folder / "page" / "card.html").write_text("old page")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(folder)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, usual[1]))
    try:
        code, _, said = command(capsys, *lines[verb])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert code == 2, said
    reasons = ("File too large", "disk I/O error", "disk is full")  # of the output itself, and of what has finished
    assert any(reason in said for reason in reasons), said
    assert "unchanged" in said
    assert "unexpected" not in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert list(folder.rglob(".*")) == []


def test_weights_that_no_option_names_are_inputs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from quantaudit.model.loading.checkpoint import locate

    monkeypatch.chdir(tmp_path)
    weights = locate("demo").weights[0]
    before = weights.stat()
    monkeypatch.setattr(sys, "argv", ["quantaudit", "measure", "demo", "--out", str(weights), "--force"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, "an input of this command" in capsys.readouterr().err) == (2, True)
    assert weights.stat() == before
