"""Advice and gate agree: what was simulated for an advice is what the gate judges, not an estimate."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import typer

from quantaudit import cli
from quantaudit.card.schema import load_card
from quantaudit.cli.advise import TOO_LITTLE_TEXT, exit_unless_known
from quantaudit.common.resources import resource_dir
from quantaudit.gate.report import GateFinding, GateReport
from tests.builders import save_checkpoint, tiny_model


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0)


def test_the_gate_knows_an_advised_recipe_by_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_checkpoint(tmp_path / "llama", tiny_model("llama", num_hidden_layers=2))
    texts = tmp_path / "texts.jsonl"
    rows = [{"domain": "ab"[i % 2], "text": f"Sample {i}: {'words, ' * (i + 4)}end."} for i in range(8)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    card, advised = tmp_path / "card" / "card.json", tmp_path / "advised.yaml"
    assert run("report", model, "--corpus", texts, "--out", card.parent, "--device", "cpu") == 0
    static = resource_dir("recipes") / "w8a8_static.yaml"
    assert run("advise", static, "--card", card, "--model", model, "--out", advised, "--device", "cpu") == 3
    assert "gate: INCONCLUSIVE  QA104 on the card" in capsys.readouterr().out
    amended = load_card(card)
    assert amended.simulation is not None
    row = next(row for row in amended.simulation.recipes if row.name == "advised")
    assert row.kl == amended.advice[0].advised.kl
    assert row.digest is not None

    capsys.readouterr()
    run("gate", advised, "--card", card, "--format", "json")
    judged = json.loads(capsys.readouterr().out)
    assert judged["score"]["kl"] == row.kl
    assert judged["score"]["source"] == "measured"
    assert "QA417" not in {finding["code"] for finding in judged["findings"]}


@pytest.mark.parametrize(
    ("codes", "expected"), [(["QA516"], 0), (["QA516", "QA515"], 3), (["QA514"], 3), ([], 0)], ids=str
)
def test_what_was_asked_of_little_text_is_answered_and_what_is_not_known_is_not(
    codes: list[str], expected: int
) -> None:
    findings = [GateFinding.model_construct(code=code, severity="inconclusive") for code in codes]
    outcome = "inconclusive" if codes else "pass"
    report = GateReport.model_construct(findings=findings, outcome=outcome)
    with pytest.raises(typer.Exit) if expected else nullcontext() as stop:
        exit_unless_known(report, accepted=TOO_LITTLE_TEXT)
    assert (stop.value.exit_code if stop else 0) == expected


def test_advice_from_a_card_that_cannot_be_trusted_is_inconclusive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted, out = Path(__file__).parents[1] / "golden/dense/card.json", tmp_path / "recipe.yaml"
    asked = "--verdict", "ready", "--unquantized", "--out", out
    assert run("advise", "--card", trusted, *asked) == 0
    assert "gate: PASS" in capsys.readouterr().out
    assert "inconclusive" not in out.read_text(encoding="utf-8")

    held = json.loads(trusted.read_text(encoding="utf-8"))
    unused = {"code": "QA109", "severity": "error", "message": "9 stored tensors of it are not used"}
    held["findings"].append(held["findings"][0] | unused)
    card = tmp_path / "card.json"
    card.write_text(json.dumps(held), encoding="utf-8")
    assert run("advise", "--card", card, *asked, "--force") == 3
    assert "gate: INCONCLUSIVE  QA109 on the card: 9 stored tensors" in capsys.readouterr().out
    assert "Not to be relied on, as the gate is inconclusive: QA109 on the card" in out.read_text(encoding="utf-8")


def test_advice_that_fails_the_gate_says_so_in_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, out = Path(__file__).parents[1] / "golden/dense/card.json", tmp_path / "recipe.yaml"
    tight = tmp_path / "tight.yaml"
    limits = "kl: {ready: 1.0e-6, care: 2.0e-6, reason: nothing is allowed}"
    tight.write_text(f"name: tight\nextends: default\n{limits}\n", encoding="utf-8")
    assert run("advise", "--card", card, "--max-bits", "9", "--policy", tight, "--out", out) == 0
    assert "gate: FAIL" in capsys.readouterr().out
    assert "# The best within its budget, and yet it fails the gate: KL" in out.read_text(encoding="utf-8")
