"""`quantaudit insert` as its users meet it: what it leaves behind, what it says, its exit codes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import quantaudit
from quantaudit.card.judge.verdict import decide
from quantaudit.card.readme.document import END
from quantaudit.card.render import render_html
from quantaudit.card.schema import Card, dump_card
from quantaudit.card.seal import seal
from quantaudit.errors import FormatError, OutputError, UsageError
from quantaudit.policy import load_policy
from tests.card_factory import make_card
from tests.command_line import Capture, run
from tests.readmes import READMES
from tests.recipe_cards import STATIC, card_of

FILES = ["badge.json", "badge.svg", "card.json", "peaks_by_layer.png", "recipe.yaml"]
WRITTEN = ["card.json", "badge.svg", "badge.json", "recipe.yaml", "peaks_by_layer.png"]
"""The same in the order in which they are named."""


def a_card(family: str = "llama", hurt: float = 0.5) -> Card:
    """A sealed card of real modules: static INT8 costs `hurt` nats for each down_proj, dynamic INT8 hardly any."""
    card = card_of(family, hurt={"down_proj": hurt})
    verdict = decide(card.sites, card.coverage, card.simulation, card.findings, load_policy())
    return seal(card.model_copy(update={"verdict": verdict}))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a card and a README, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.json").write_text(dump_card(a_card()), encoding="utf-8")
    (tmp_path / "README.md").write_bytes(READMES["front matter with comments"])
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_section_is_written_with_its_files_and_twice_is_once(folder: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "insert", "card.json", "README.md")
    assert (code, out) == (0, "")
    assert [line.split()[-1] for line in err.splitlines()] == [
        "README.md",
        *(f"quantaudit/{name}" for name in WRITTEN),
    ]
    text = (folder / "README.md").read_bytes()
    assert text.startswith(READMES["front matter with comments"])
    assert sorted(path.name for path in (folder / "quantaudit").iterdir()) == FILES
    assert (folder / "quantaudit/card.json").read_bytes() == (folder / "card.json").read_bytes()
    assert b"vllm serve llama-quantized" in text
    before = snapshot(folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(capsys, "insert", "card.json", "README.md") == (0, "", "")
    assert snapshot(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}.items() <= stamps.items()


def test_the_recipe_that_it_names_passes_the_gate(folder: Path, capsys: Capture) -> None:
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    assert run(capsys, "gate", "quantaudit/recipe.yaml", "--card", "quantaudit/card.json")[0] == 0


def test_a_recipe_that_the_gate_refuses_is_not_named(folder: Path) -> None:
    """Static INT8 that a verdict calls READY, on experts: vLLM has no kernel for those."""
    card = a_card("qwen3-moe", hurt=1e-4)
    rows = [row for row in card.verdict.schemes if row.scheme == STATIC]
    assert [row.status for row in rows] == ["READY"]
    verdict = card.verdict.model_copy(update={"schemes": rows})
    result = quantaudit.insert(card.model_copy(update={"verdict": verdict}), "README.md")
    assert [path.name for path in result.written] == ["README.md", *(name for name in WRITTEN if name != "recipe.yaml")]
    assert "vllm serve" not in (folder / "README.md").read_text(encoding="utf-8")


def test_check_says_what_differs(folder: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "insert", "card.json", "README.md", "--check")
    assert (code, len(out.splitlines())) == (1, 1)
    assert "README.md has no section" in out
    assert "quantaudit/card.json is missing" in out
    assert [path.name for path in folder.iterdir()] == [path.name for path in folder.iterdir() if path.is_file()]

    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    assert run(capsys, "insert", "card.json", "README.md", "--check") == (
        0,
        "README.md: the section is what the card gives\n",
        "",
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    line = next(n for n, row in enumerate(text.splitlines(), start=1) if "NOT READY" in row)
    (folder / "README.md").write_text(text.replace("NOT READY", "READY", 1), encoding="utf-8")
    code, out, _ = run(capsys, "insert", "card.json", "README.md", "--check")
    assert (code, out) == (1, f"README.md: README.md differs from the card on line {line}\n")
    (folder / "README.md").write_text(f"{text}\nmore\n", encoding="utf-8")
    assert run(capsys, "insert", "card.json", "README.md", "--check")[0] == 0
    (folder / "quantaudit/recipe.yaml").write_text("changed")
    code, out, _ = run(capsys, "insert", "card.json", "README.md", "--check")
    assert (code, out) == (1, "README.md: quantaudit/recipe.yaml is not what the card gives\n")


def test_another_card_replaces_the_section_and_what_it_no_longer_gives(folder: Path, capsys: Capture) -> None:
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    once = (folder / "README.md").read_bytes()
    (folder / "other.json").write_text(dump_card(make_card(4)), encoding="utf-8")
    assert run(capsys, "insert", "other.json", "README.md", "--check")[0] == 1
    code, _, err = run(capsys, "insert", "other.json", "README.md")
    assert code == 0
    assert "removed quantaudit/recipe.yaml" in err
    assert sorted(path.name for path in (folder / "quantaudit").iterdir()) == FILES[:4]
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    assert (folder / "README.md").read_bytes() == once


def test_the_card_next_to_the_readme_can_be_given(folder: Path, capsys: Capture) -> None:
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    before = snapshot(folder)
    assert run(capsys, "insert", "quantaudit/card.json", "README.md") == (0, "", "")
    assert run(capsys, "insert", "quantaudit/card.json", "README.md", "--check")[0] == 0
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["CRLF without a final newline", "empty", "a byte order mark, front matter and CRLF"])
def test_bytes_of_a_file_are_kept(folder: Path, capsys: Capture, name: str) -> None:
    (folder / "README.md").write_bytes(READMES[name])
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    once = (folder / "README.md").read_bytes()
    assert once.startswith(READMES[name])
    assert run(capsys, "insert", "card.json", "README.md", "--check")[0] == 0
    assert (b"\r\n" in once) == (b"\r\n" in READMES[name])


def test_mistakes_are_named_and_nothing_is_written(folder: Path, capsys: Capture) -> None:
    (folder / "broken.md").write_text(f"# T\n\n{END}\n")
    (folder / "open.md").write_text("# T\n\n```\nx\n")
    (folder / "latin.md").write_bytes("Größe\n".encode("latin-1"))
    (folder / "sub").mkdir()
    (folder / "link.md").symlink_to("README.md")
    os.mkfifo(folder / "pipe")
    before = snapshot_of_files(folder)
    mistakes = {
        "broken.md": "broken.md:3: the section's end marker without its begin marker",
        "open.md": "open.md:3: the file ends inside",
        "latin.md": "latin.md:1: not UTF-8",
        "none.md": "none.md: no such file\ngive the README.md of the model's repository; an empty file will do",
        "sub": "sub: cannot be read: a folder, not a file",
        "pipe": "is a pipe",
        "link.md": "is a symbolic link",
        "card.json": "would overwrite the file of --card card.json",
        "no/such/README.md": "no such file",
    }
    for name, words in mistakes.items():
        code, out, err = run(capsys, "insert", "card.json", name)
        assert (code, out) == (2, ""), name
        assert words in err, (name, err)
        assert len(err.splitlines()) <= 2, err
    assert snapshot_of_files(folder) == before
    assert run(capsys, "insert", "none.json", "README.md")[0] == 2


def snapshot_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def test_files_that_no_card_came_with_are_not_replaced(folder: Path, capsys: Capture) -> None:
    (folder / "quantaudit").mkdir()
    run(capsys, "insert", "card.json", "README.md")  # an empty folder holds nothing to lose
    shutil.rmtree(folder / "quantaudit")
    (folder / "README.md").write_bytes(READMES["front matter with comments"])
    (folder / "quantaudit").mkdir()
    (folder / "quantaudit/card.html").write_text("notes of mine")
    before = snapshot(folder)
    code, _, err = run(capsys, "insert", "card.json", "README.md")
    assert code == 2
    assert "no card that was inserted there" in err
    assert "--force" in err
    with pytest.raises(UsageError, match="no card that was inserted"):
        quantaudit.insert("card.json", "README.md")
    assert snapshot(folder) == before
    assert run(capsys, "insert", "card.json", "README.md", "--check")[0] == 1
    assert run(capsys, "insert", "card.json", "README.md", "--force")[0] == 0
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0


def test_a_folder_that_is_a_link_or_a_file_is_refused(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "quantaudit").symlink_to("elsewhere")
    code, _, err = run(capsys, "insert", "card.json", "README.md")
    assert code == 2
    assert "symbolic link" in err
    (folder / "quantaudit").unlink()
    (folder / "quantaudit").write_text("mine")
    code, _, err = run(capsys, "insert", "card.json", "README.md")
    assert code == 2
    assert len(err.splitlines()) <= 2
    assert (folder / "quantaudit").read_text() == "mine"
    assert (folder / "README.md").read_bytes() == READMES["front matter with comments"]


def test_a_card_that_was_edited_is_said_to_be_and_can_be_refused(folder: Path, capsys: Capture) -> None:
    data = json.loads((folder / "card.json").read_text())
    data["created"] = "2020-01-01T00:00:00Z"
    (folder / "card.json").write_text(json.dumps(data))
    code, _, err = run(capsys, "insert", "card.json", "README.md", "--require-sealed")
    assert code == 2
    assert "edited after it was written" in err
    assert (folder / "README.md").read_bytes() == READMES["front matter with comments"]
    code, _, err = run(capsys, "insert", "card.json", "README.md")
    assert code == 0
    assert "edited after it was written" in err
    assert "**The card below was edited after it was written" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_function_does_what_the_verb_does(folder: Path, capsys: Capture) -> None:
    shutil.copytree(folder, folder / "other")
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    result = quantaudit.insert("other/card.json", "other/README.md")
    assert len(result.written) == 6
    assert snapshot(folder / "other") == {
        name: data for name, data in snapshot(folder).items() if not name.startswith("other/")
    }
    again = quantaudit.insert(a_card(), Path("other/README.md"), check=True)
    assert (again.differences, again.written) == ([], [])
    assert quantaudit.insert(a_card(), "other/README.md").written == []
    with pytest.raises(FormatError, match="no seal"):
        quantaudit.insert(make_card(2), "README.md", require_sealed=True)
    with pytest.raises(OutputError, match="would overwrite"):
        quantaudit.insert("card.json", "card.json")


def test_the_page_that_a_report_wrote_goes_with_its_card(folder: Path, capsys: Capture) -> None:
    (folder / "card.html").write_text(render_html(a_card()), encoding="utf-8")
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    assert (folder / "quantaudit/card.html").read_bytes() == (folder / "card.html").read_bytes()
    assert b"[card.html](quantaudit/card.html)" in (folder / "README.md").read_bytes()
    before = snapshot(folder)
    assert run(capsys, "insert", "quantaudit/card.json", "README.md") == (0, "", "")  # as in the repository itself
    assert snapshot(folder) == before
    (folder / "other.json").write_text(dump_card(seal(make_card(4))), encoding="utf-8")
    code, _, err = run(capsys, "insert", "other.json", "README.md")
    assert code == 0
    assert "card.html is left out: it is not the page of this card" in err
    assert "removed quantaudit/card.html" in err


def test_the_front_matter_is_extended_where_asked_and_checked(folder: Path, capsys: Capture) -> None:
    assert run(capsys, "insert", "card.json", "README.md")[0] == 0
    code, out, _ = run(capsys, "insert", "card.json", "README.md", "--check", "--front-matter")
    assert (code, out) == (1, "README.md: the front matter of README.md lacks what the card gives\n")
    before = (folder / "README.md").read_bytes()
    assert run(capsys, "insert", "card.json", "README.md", "--front-matter")[0] == 0
    added = b"  - conversational\n  - quantaudit\n"
    assert (folder / "README.md").read_bytes() == before.replace(b"  - conversational\n", added)
    assert run(capsys, "insert", "card.json", "README.md", "--check", "--front-matter")[0] == 0
    assert run(capsys, "insert", "card.json", "README.md", "--front-matter") == (0, "", "")
    assert run(capsys, "insert", "card.json", "README.md") == (0, "", "")  # it stays where nobody asks
    (folder / "config.json").write_text("{")
    code, _, err = run(capsys, "insert", "card.json", "README.md", "--front-matter")
    assert code == 2
    assert err.startswith("error: config.json: not JSON: ")


def test_front_matter_that_cannot_be_extended_is_refused(folder: Path, capsys: Capture) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\ntags: one\n---\n# T\n")
    code, _, err = run(capsys, "insert", "card.json", "README.md", "--front-matter")
    assert code == 2
    assert err == (
        "error: README.md:3: `tags` is no list, so no tag can be added to it\n"
        "write it by hand, or leave --front-matter out\n"
    )
    assert not (folder / "quantaudit").exists()
