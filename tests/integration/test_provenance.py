"""Files that do not belong together are refused by every verb that reads them, and the message names what differs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantaudit import cli
from tests.builders import save_checkpoint, tiny_model

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture | None, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr() if capsys else ("", "")
    return int(stop.value.code or 0), captured[0], captured[1]


def write_corpus(path: Path, word: str, *, chats: bool = False) -> Path:
    rows: list[dict[str, Any]] = [{"text": f"Sample {i}: {f'{word}, ' * (i + 4)}end."} for i in range(6)]
    if chats:
        rows.append({"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, its report card/ with a simulation, and the texts that it was measured on. Read only."""
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(folder / "model", tiny_model("mistral", num_hidden_layers=1))
    write_corpus(folder / "plain.jsonl", "words")
    write_corpus(folder / "chats.jsonl", "words", chats=True)
    for name in ("plain", "chats"):
        code, _, _ = run(
            None, "measure", folder / "model", "--corpus", folder / f"{name}.jsonl", "--out", folder / f"{name}.st"
        )
        assert code == 0
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    change(content)
    path.write_text(json.dumps(content))


def lower_case(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def other_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for m in messages %}({{ m.role }}){{ m.content }}{% endfor %}")


CHANGES: dict[str, tuple[str, Callable[[Path], Any], str | None]] = {
    "activation": (
        "plain",
        lambda model: edit(model / "config.json", lambda c: c.update(hidden_act="relu")),
        "with another config.json: hidden_act",
    ),
    "tokenizer": (
        "plain",
        lambda model: edit(model / "tokenizer.json", lower_case),
        "with another tokenizer (tokenizer.json)",
    ),
    "template": ("chats", other_template, "with another chat template"),
    "template that no text goes through": ("plain", other_template, None),
    "generation": (
        "plain",
        lambda model: edit(model / "generation_config.json", lambda c: c.update(max_length=7)),
        None,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_profile_of_another_configuration_or_tokenizer_is_refused(
    base: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    corpus, change, message = CHANGES[name]
    model = Path(shutil.copytree(base / "model", tmp_path / "model"))
    change(model)
    code, _, err = run(
        capsys, "simulate", model, "--profile", base / f"{corpus}.st", "--score", "damage",
        "--evaluation-tokens", 32, "--out", tmp_path / "s.json",
    )  # fmt: skip
    assert (code, (tmp_path / "s.json").exists()) == ((0, True) if message is None else (2, False))
    if message is not None:
        assert f"profile was measured on the same weights (model) {message}" in err
        assert "or measure again" in err
