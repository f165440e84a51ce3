"""`quantaudit compare` as its users meet it: what it says, what it leaves behind, its exit codes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import quantaudit
from quantaudit.card.published.records import find
from quantaudit.card.schema import Card, dump_card
from quantaudit.card.seal import seal
from quantaudit.errors import UsageError
from tests.card_factory import make_card
from tests.command_line import Capture, run
from tests.stored_statistics import save, stored


def write(folder: Path, card: Card) -> None:
    folder.mkdir()
    (folder / "card.json").write_text(dump_card(card), encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an old card, a new one that differs in its date, and one that was edited."""
    monkeypatch.chdir(tmp_path)
    card = seal(make_card(4, findings=[]))
    write(tmp_path / "old", card)
    write(tmp_path / "new", seal(card.model_copy(update={"created": "2026-03-03T04:05:06Z"})))
    assert card.simulation is not None
    evaluation = card.simulation.evaluation.model_copy(update={"samples": [f"other {index}" for index in range(24)]})
    simulation = card.simulation.model_copy(update={"evaluation": evaluation})
    write(tmp_path / "other text", seal(card.model_copy(update={"simulation": simulation})))
    write(tmp_path / "edited", card.model_copy(update={"created": "2027"}))
    return tmp_path


def test_two_cards_and_a_folder_of_one(capsys: Capture) -> None:
    code, out, err = run(capsys, "compare", "old", "new/card.json")
    assert (code, err) == (0, "")
    assert "Verdicts and scores" in out
    assert "residual stream" in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["old", "new", "--fail-on", "verdict", "--fail-on", "peak=1.5"], 0),
        (["published:Qwen3-30B-A3B", "published:Qwen3-32B", "--fail-on", "peak=1.5"], 1),
        (["old", "published:Qwen3-8B", "--fail-on", "peak=100"], 3),
        (["old", "new", "--fail-on", "kl=0", "--fail-on", "top1=0"], 0),
        (["old", "other text", "--fail-on", "kl=0"], 3),
        (["old"], 2),
        (["old", "nowhere"], 2),
        (["old", "published:Nobody"], 2),
        (["old", "new", "--fail-on", "kl"], 2),
        (["old", "new", "--format", "xml"], 2),
        (["old", "edited", "--require-sealed"], 2),
        (["old", "edited"], 0),
    ],
)
def test_exit_codes(capsys: Capture, arguments: list[str], code: int) -> None:
    found, _, err = run(capsys, "compare", *arguments)
    assert found == code
    assert len(err.splitlines()) <= 2
    assert ("edited after it was written" in err) == ("edited" in arguments)


def test_stored_statistics_are_a_card_of_peaks(folder: Path, capsys: Capture) -> None:
    for name in ("Qwen3-32B", "Qwen3-30B-A3B"):
        model = find(name)
        assert model is not None
        save(folder / f"{name}_top5_stats.json.gz", stored(model))
    names = [f"{name}_top5_stats.json.gz" for name in ("Qwen3-32B", "Qwen3-30B-A3B")]
    code, out, _ = run(capsys, "compare", *names, "--format", "json")
    assert code == 0
    answer = json.loads(out)
    assert [subject["largest"]["amax"] for subject in answer["subjects"]] == [35328, 1512]
    assert answer["landscape"]["mixtures"][0]["ratio"] == pytest.approx(35328 / 1512)


def test_stored_statistics_have_no_seal(folder: Path, capsys: Capture) -> None:
    model = find("Qwen3-32B")
    assert model is not None
    save(folder / "x_top5_stats.json", stored(model))
    code, _, err = run(capsys, "compare", "old", "x_top5_stats.json", "--require-sealed")
    assert code == 2
    assert "have no seal" in err


def test_pages_are_written_over_old_ones_only_where_that_is_asked_for(folder: Path, capsys: Capture) -> None:
    arguments = ("compare", "old", "new", "--out", "page")
    code, _, err = run(capsys, *arguments)
    assert code == 0
    assert [line.split()[-1] for line in err.splitlines()] == [
        f"page/{name}" for name in ("compare.json", "compare.html", "compare.md")
    ]
    assert run(capsys, *arguments)[0] == 2
    assert run(capsys, *arguments, "--force")[0] == 0
    before = (folder / "old/card.json").read_bytes()
    os.link(folder / "old/card.json", folder / "page/compare.md.old")
    shutil.move(folder / "page/compare.md.old", folder / "page/compare.md")
    assert (
        run(capsys, "compare", "new", "old", *arguments[3:], "--force")[0] == 2
    )  # the output is the input, by another name
    assert (folder / "old/card.json").read_bytes() == before


def test_the_function_says_what_the_command_says(folder: Path, capsys: Capture) -> None:
    answer = quantaudit.compare("old", folder / "new", fail_on=["verdict"], out="page")
    assert (answer.outcome, answer.exit_code) == ("pass", 0)
    _, out, _ = run(capsys, "compare", "old", str(folder / "new"), "--fail-on", "verdict", "--format", "json")
    assert json.loads(out) == json.loads(answer.model_dump_json())
    assert (folder / "page/compare.html").exists()
    with pytest.raises(UsageError):
        quantaudit.compare("old")


def test_a_card_that_speaks_of_the_papers_tables_is_a_card(folder: Path, capsys: Capture) -> None:
    card = make_card(4, findings=[])
    corpus = card.corpus.model_copy(update={"domains": {"per_layer_stats": card.corpus.domains.popitem()[1]}})
    rest = card.corpus.model_copy(update={"domains": corpus.domains | card.corpus.domains})
    write(folder / "odd", seal(card.model_copy(update={"corpus": rest})))
    assert run(capsys, "compare", "old", "odd")[0] == 0


def test_markdown_goes_to_stdout(capsys: Capture) -> None:
    code, out, _ = run(capsys, "compare", "published:Ling", "--format", "markdown")
    assert code == 0
    assert "7,648 → 9,024 → 10,112 → 11,776" in out


def test_what_others_named_does_nothing_to_a_terminal(folder: Path, capsys: Capture) -> None:
    card = make_card(4, findings=[])
    name = "\x1b]0;pwned\x07\u202e" + "n" * 10_000
    write(folder / "hostile", seal(card.model_copy(update={"model": card.model.model_copy(update={"name": name})})))
    for form in ("text", "json", "markdown"):
        code, out, _ = run(capsys, "compare", "old", "hostile", "--format", form)
        assert code == 0
        assert "\x1b]" not in out
        assert "\u202e" not in out
