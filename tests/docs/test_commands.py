"""Every command of the README and the documentation is run as it is written, on small things; a synopsis is true."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from quantaudit import cli
from tests.docs.pages import ROOT, Command, commands
from tests.docs.workspace import MODELS, SMALL, quantaudit

OPTION = r"--[a-z][a-z-]*"
VERDICTS = {
    "gate": {0, 1, 3},
    "verify": {0, 1, 3},
    "advise": {0, 3},
    "conform": {0, 1, 3},
    "insert": {0, 1},
    "compare": {0, 1, 3},
}
"""Exit codes of the verbs whose code is the answer; a random model may deserve any."""
TESTED_ELSEWHERE = {
    "make demo": "its command is that of `quantaudit report demo`; tests/integration/test_demo.py",
    "make test": "runs this test",
    "make install": "what runs this test was installed by it",
    "pip install .": "CI installs the project before anything else",
    "pip install ./quantaudit": "the same, from next to the checkout",
}


def of(*programs: str, synopsis: bool) -> list[object]:
    found = [c for c in commands() if c.words[0] in programs and c.synopsis == synopsis]
    return [pytest.param(command, id=command.name) for command in found]


@pytest.mark.parametrize("command", of("quantaudit", "optimum-cli", synopsis=False))
def test_a_command_runs(command: Command, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command.words[1:]
    if command.words[0] == "optimum-cli":
        if words[0] != "quantaudit":
            pytest.skip("Optimum's own command, which another package brings")
        words = words[1:]
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    assert quantaudit(*small(words)) in VERDICTS.get(words[0], {0})


def small(words: list[str]) -> list[str]:
    """The same command on the small model and a few short samples, on this machine, over what an earlier one wrote."""
    verb = verbs()[words[0]]
    replaced = {"demo": MODELS[0], "cuda": "cpu", "model.gguf": MODELS[0]}
    found = [replaced.get(word, word) for word in words]
    options = {option for parameter in verb.params for option in parameter.opts}
    for option, value in SMALL.items():
        if (words[0], option) == ("advise", "--schemes"):  # a choice among those of the card
            continue
        if words[0] == "compare" and "--logits" not in words:  # cards are compared as they are
            continue
        if option in options and option not in found:
            found += [option, value]
    return [*found, "--force"] if "--force" in options and "--force" not in found else found


def verbs() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli.app)
    return dict(group.commands)


@pytest.mark.parametrize("command", of("quantaudit", "optimum-cli", synopsis=True))
def test_a_synopsis_names_a_verb_and_its_options(command: Command) -> None:
    verb = command.text.partition("quantaudit ")[2].split()[0]
    if verb == "…":  # any
        return
    options = {option for parameter in verbs()[verb].params for option in parameter.opts}
    assert set(re.findall(OPTION, command.text)) <= options


@pytest.mark.parametrize("command", of("hf", synopsis=False))
def test_a_command_of_the_hub_is_one_that_it_knows(command: Command, tmp_path: Path) -> None:
    """A job is resolved, and not submitted; what it runs there is a verb with its options."""
    hf, (verb, *rest) = Path(sys.executable).with_name("hf"), command.words[1:]
    submits = [verb, *rest[:1]] == ["jobs", "run"]
    words = [verb, "run", "--dry-run", *rest[1:]] if submits else [verb, *rest, "--help"]
    environment = {**os.environ, "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([hf, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if not submits:
        return
    assert "Job not submitted" in done.stdout + done.stderr
    inside = next(part.split() for part in command.words[-1].split(" && ") if part.startswith("quantaudit "))
    options = {option for parameter in verbs()[inside[1]].params for option in parameter.opts}
    assert {word for word in inside if word.startswith("--")} <= options


@pytest.mark.parametrize("command", of("make", "pip", synopsis=False))
def test_a_command_that_prepares_something_exists(command: Command) -> None:
    if command.words[0] == "make":
        done = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    else:
        assert " ".join(command.words) in TESTED_ELSEWHERE


@pytest.mark.parametrize("command", of("python", synopsis=False))
def test_a_program_of_the_repository_can_be_started(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file or module is there, and its options are known. What benchmarks print is tested with them."""
    if command.words[1] == "-m":
        assert importlib.util.find_spec(command.words[2])
        return
    program = ROOT / command.words[1]
    monkeypatch.syspath_prepend(program.parent)
    monkeypatch.setattr(sys, "argv", [str(program), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(program), run_name="__main__")
    assert not stop.value.code
    assert set(re.findall(OPTION, command.text)) <= set(re.findall(OPTION, capsys.readouterr().out))
