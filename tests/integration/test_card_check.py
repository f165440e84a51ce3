"""`card --check`: a card that says what its profile gives, and every field of one that does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quantaudit
from quantaudit.card.schema import dump_card, load_card
from quantaudit.card.seal import seal
from quantaudit.common.resources import resource_dir
from tests.builders import save_checkpoint, tiny_model
from tests.command_line import Capture, run

STATIC = resource_dir("recipes") / "w8a8_static.yaml"
FEW = ("--evaluation-tokens", 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, text.jsonl, and two reports of them: card/ and redacted/. Read only."""
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(folder / "model", tiny_model("mistral", num_hidden_layers=1))
    rows = [{"text": f"Sample {i}: {'words, ' * (i + 4)}end.", "domain": "ab"[i % 2]} for i in range(6)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, more in (("card", ()), ("redacted", ("--redact-text",))):
        given = ("--corpus", folder / "text.jsonl", *FEW, *more, "--out", folder / name)
        assert run(None, "report", folder / "model", *given)[0] == 0
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base / "card", tmp_path / "card"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["card", "redacted"])
def test_a_report_agrees_with_its_profile(base: Path, capsys: Capture, name: str) -> None:
    code, out, err = run(capsys, "card", "--check", base / name / "card.json")
    assert (code, err) == (0, "")
    assert out.startswith("equal: ")
    assert "not computed again without the model: simulation.evaluation, simulation.schemes, simulation.groups" in out


def test_a_redacted_card_is_checked_against_the_profile_before_it_was(base: Path, capsys: Capture) -> None:
    given = ("card", "--check", base / "redacted" / "card.json", "--profile", base / "card" / "profile.safetensors")
    assert run(capsys, *given)[0] == 0
    given = ("card", "--check", base / "card" / "card.json", "--profile", base / "redacted" / "profile.safetensors")
    code, _, err = run(capsys, *given)
    assert (code, "profile is redacted, and the card is not" in err) == (2, True)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "statistic": (
        lambda card: card["sites"][2].update(rms=0.0625),
        "sites[2: layers.0.self_attn.o_proj.input].rms: 0.0625 on the card, ",
    ),
    "share": (lambda card: card["coverage"].update(linears_measured=1), "coverage.linears_measured: 1 on the card, "),
    "tensor error": (
        lambda card: card["simulation"]["sites"][0].update(sqnr_db=99.0),
        ".sqnr_db: 99.0 on the card, ",
    ),
    "scale": (lambda card: card["scales"][0].update(scale=card["scales"][0]["scale"] / 2), ".scale: "),
    "domain": (lambda card: card["sites"][0]["domains"].pop("a"), ".domains.a: nothing on the card, "),
    "all scales": (lambda card: card["scales"].clear(), "scales[0]: nothing on the card, "),
    "field": (lambda card: card.pop("profile_sha256"), "profile_sha256: nothing on the card, "),
    "scales": (lambda card: card["scales"].pop(), "nothing on the card, "),
    "verdict": (
        lambda card: card["verdict"]["schemes"][0].update(status="READY"),
        'verdict.schemes[0: int8_static_per_tensor].status: "READY" on the card, ',
    ),
    "score": (
        lambda card: card["simulation"]["recipes"][1].update(kl=0.123456),
        " on the card, 0.123456 by the profile",
    ),
    "finding": (lambda card: card.update(findings=[]), "findings[0]: nothing on the card, "),
    "name": (
        lambda card: card["model"].update(name="other"),
        'model.name: "other" on the card, "model" by the profile',
    ),
    "profile": (lambda card: card.update(profile_sha256="0" * 64), f'profile_sha256: "{"0" * 64}" on the card, '),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_field_is_printed_with_both_values(folder: Path, capsys: Capture, name: str) -> None:
    change, line = EDITS[name]
    edit(folder / "card.json", change)
    if name == "profile":
        edit(folder / "card.json", lambda card: card["simulation"].update(profile_sha256="0" * 64))
    code, out, err = run(capsys, "card", "--check", folder / "card.json")
    assert code == 1
    assert line in out
    assert " differ: " in out or "1 field differs: " in out
    assert "card.json: the card was edited after it was written: its seal does not fit" in err


def test_numbers_that_were_sealed_again_are_found_all_the_same(folder: Path, capsys: Capture) -> None:
    card = load_card(folder / "card.json")
    site = card.sites[0].model_copy(update={"tokens": card.sites[0].tokens + 1})
    (folder / "card.json").write_text(dump_card(seal(card.model_copy(update={"sites": [site, *card.sites[1:]]}))))
    code, out, err = run(capsys, "card", "--check", folder / "card.json")
    assert (code, err, ".tokens: " in out) == (1, "", True)


def test_what_an_older_version_did_not_write_differs_in_nothing(folder: Path, capsys: Capture) -> None:
    def older(content: dict[str, Any]) -> None:
        del (
            content["profile_sha256"],
            content["model"]["inputs"],
            content["seal"],
            content["sites"][0]["peaks"][0]["token_kind"],
        )

    edit(folder / "card.json", older)
    code, _, err = run(capsys, "card", "--check", folder / "card.json")
    assert (code, "the card has no seal" in err) == (0, True)
    edit(folder / "card.json", lambda content: content["sites"][0]["domains"].pop("a"))
    assert run(capsys, "card", "--check", folder / "card.json")[0] == 1


def test_advice_that_was_added_leaves_a_card_equal_and_sealed(base: Path, folder: Path, capsys: Capture) -> None:
    card = folder / "card.json"
    given = ("advise", STATIC, "--card", card, "--model", base / "model", "--no-smoothing", *FEW)
    for name in ("one.yaml", "two.yaml"):
        assert run(capsys, *given, "--out", folder.parent / name)[0] == 3  # advice on a random model is inconclusive
    assert load_card(card).advice
    code, out, err = run(capsys, "card", "--check", card)
    assert (code, err) == (0, "")
    assert "simulation.granularity, advice" in out


def test_files_that_do_not_belong_together_exit_2(base: Path, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    card = folder / "card.json"
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": f"Other {i}, {i}."}) + "\n" for i in range(6)))
    given = ("measure", base / "model", "--corpus", tmp_path / "other.jsonl", "--out", tmp_path / "other.st")
    assert run(capsys, *given)[0] == 0
    code, _, err = run(capsys, "card", "--check", card, "--profile", tmp_path / "other.st")
    assert (code, "they differ in their corpus (text.jsonl, " in err) == (2, True)
    code, _, err = run(capsys, "card", "--check", card, "--policy", "strict")
    assert (code, "card was judged under the policy default, not strict" in err) == (2, True)
    (folder / "profile.safetensors").unlink()
    code, _, err = run(capsys, "card", "--check", card)
    assert (code, "profile.safetensors: no such file" in err) == (2, True)


def test_in_python_it_takes_paths_and_objects(base: Path) -> None:
    path = base / "card" / "card.json"
    result = quantaudit.check_card(path)
    assert (result.exit_code, result.seal, result.differences) == (0, "sealed", [])
    assert result.compared > 1000
    card, profile = quantaudit.load_card(path), quantaudit.load_profile(base / "card" / "profile.safetensors")
    edited = card.model_copy(update={"landscape": card.landscape.model_copy(update={"published": []})})
    assert {row.field.split("[")[0] for row in quantaudit.check_card(edited, profile).differences} == {
        "landscape.published"
    }
    with pytest.raises(quantaudit.QuantauditError, match="a card in memory needs its profile"):
        quantaudit.check_card(card)


# Seals on the command line --------------------------------------------------------------------------------------------


def test_every_verb_that_reads_a_card_says_that_it_was_edited(base: Path, folder: Path, capsys: Capture) -> None:
    card = folder / "card.json"
    edit(card, lambda content: content["environment"].update(platform="elsewhere"))
    said = f"{card}: the card was edited after it was written"
    code, out, err = run(capsys, "gate", STATIC, "--card", card, "--format", "json")
    report = json.loads(out)
    assert (report["seal"], [row["code"] for row in report["findings"] if row["severity"] == "warning"][-1]) == (
        "edited",
        "QA518",
    )
    assert said in err
    page = folder.parent / "page"
    assert said in run(capsys, "render", card, "--out", page)[2]
    assert "edited after it was written" in (page / "card.html").read_text()
    assert said in run(capsys, "conform", base / "model", "--card", card)[2] or code in (0, 1, 3)
    given = ("advise", STATIC, "--card", card, "--model", base / "model", "--no-smoothing", *FEW)
    code, _, err = run(capsys, *given, "--out", folder.parent / "advised.yaml")
    assert (code, said in err) == (3, True)
    assert "the card was edited" in run(capsys, "card", "--check", card)[2]


@pytest.mark.parametrize(
    ("change", "why"), [("edited", "was edited after it was written"), ("unsealed", "has no seal")]
)
def test_a_gate_that_requires_a_seal_refuses_other_cards(folder: Path, capsys: Capture, change: str, why: str) -> None:
    card = folder / "card.json"
    assert run(capsys, "gate", STATIC, "--card", card, "--require-sealed")[0] in (0, 1, 3)
    edit(card, lambda content: content.update({"created": "then"} if change == "edited" else {"seal": None}))
    code, _, err = run(capsys, "gate", STATIC, "--card", card)
    assert (code in (0, 1, 3), why in err) == (True, True)
    for verb in (("gate", STATIC), ("conform", card.parent)):
        code, _, err = run(capsys, *verb, "--card", card, "--require-sealed")
        assert (code, f"error: {card}: the card {why}" in err) == (2, True)
    with pytest.raises(quantaudit.QuantauditError, match=why):
        quantaudit.gate(STATIC, card, require_sealed=True)
    with pytest.raises(quantaudit.QuantauditError, match=why):
        quantaudit.gate(STATIC, load_card(card), require_sealed=True)
