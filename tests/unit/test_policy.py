"""Policies are data, and verdicts follow from them at every threshold."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from quantaudit.common.resources import resource_dir
from quantaudit.errors import FormatError
from quantaudit.policy import judge, load_policy
from quantaudit.policy.evidence import Enough
from quantaudit.simulate.records import RecipeRow

POLICY = load_policy("default")


def recipe(kl: float | None, top1: float | None, *, nonfinite: bool = False) -> RecipeRow:
    return RecipeRow(
        name="r",
        title="R",
        kl=kl,
        kl_stderr=0.0,
        top1=top1,
        top1_stderr=0.0,
        perplexity=10.0,
        perplexity_base=9.0,
        tokens=4096,
        samples=20,
        nonfinite=nonfinite,
        groups=3,
        domains={},
    )


@pytest.mark.parametrize(
    ("kl", "top1", "status"),
    [
        (POLICY.kl.ready, POLICY.top1.ready, "READY"),
        (POLICY.kl.ready * 1.01, POLICY.top1.ready, "READY WITH CARE"),
        (POLICY.kl.ready, POLICY.top1.ready - 0.001, "READY WITH CARE"),
        (POLICY.kl.care, POLICY.top1.care, "READY WITH CARE"),
        (POLICY.kl.care * 1.01, POLICY.top1.ready, "NOT READY"),
        (POLICY.kl.ready, POLICY.top1.care - 0.001, "NOT READY"),
    ],
)
def test_the_worse_of_kl_and_top1_decides(kl: float, top1: float, status: str) -> None:
    assert judge(POLICY, recipe(kl, top1), [])[0] == status


def test_the_reason_names_what_was_broken() -> None:
    assert "KL above 0.15" in judge(POLICY, recipe(1.0, 0.99), [])[1]
    assert "top-1 below 80%" in judge(POLICY, recipe(0.01, 0.5), [])[1]


def test_what_was_not_measured_is_never_ready() -> None:
    assert judge(POLICY, recipe(0.0, 1.0), ["Two Linears were not measured."])[0] == "INCONCLUSIVE"
    assert judge(POLICY, None, [])[0] == "INCONCLUSIVE"
    assert judge(POLICY, recipe(None, None), [])[0] == "INCONCLUSIVE"


def test_non_finite_is_not_ready_even_where_much_was_not_measured() -> None:
    assert judge(POLICY, recipe(None, None, nonfinite=True), ["Two Linears were not measured."])[0] == "NOT READY"


def test_every_threshold_has_its_reason() -> None:
    for name, part in POLICY:
        if name != "name":
            assert len(part.reason) > 40


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("name: [", "not YAML"),
        ("name: x\nkl: {ready: 0.1, care: 0.2, reason: r}\n", "top1"),
        ("- a list", "not a policy"),
    ],
)
def test_a_broken_policy_names_its_mistakes(tmp_path: Path, text: str, mistake: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=mistake):
        load_policy(str(path))


def test_no_other_policy_goes_by_the_name_of_a_shipped_one(tmp_path: Path) -> None:
    """Verdicts name their policy."""
    path = tmp_path / "policy.yaml"
    shipped = (resource_dir("recipes") / "policies" / "strict.yaml").read_text(encoding="utf-8")
    path.write_text(shipped)
    assert load_policy(str(path)) == load_policy("strict")
    renamed = shipped.replace("name: strict", "name: default")
    for text in (renamed, "extends: strict\nname: strict\nkl: {ready: 9, care: 9, reason: r}"):
        path.write_text(text)
        with pytest.raises(FormatError, match="as a policy that is shipped, and is another"):
            load_policy(str(path))


def test_a_policy_that_is_not_yaml_names_its_line_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: x\nkl: {ready: [\n")
    with pytest.raises(FormatError) as caught:
        load_policy(str(path))
    assert caught.value.where == f"{path}:3"
    assert caught.value.message == "not YAML: expected the node content, but found '<stream end>'"
    assert caught.value.hint


def test_thresholds_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    shipped = Path("recipes/policies/default.yaml").resolve()
    if not shipped.is_file():
        shipped = Path(__file__).parents[2] / "recipes" / "policies" / "default.yaml"
    path = tmp_path / "p.yaml"
    path.write_text(shipped.read_text().replace("ready: 0.03", "ready: 0.5"))
    with pytest.raises(FormatError, match="ready must not exceed care"):
        load_policy(str(path))


@pytest.mark.parametrize("spec", ["/dev/null", "pipe", "pipe.yaml"])
def test_a_policy_that_is_no_file_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pipe", "pipe.yaml"):
        os.mkfifo(name)
    with pytest.raises(FormatError, match=r"a (pipe|device), not a file"):
        load_policy(spec)


def test_what_the_corpus_holds_is_tried_before_more_text_is_asked_for() -> None:
    row = Enough(samples=80, tokens=5000, evaluated=1000, held=4000)
    assert "more than the 4,000 that this corpus holds" in str(row)
    assert "those may do (--evaluation-tokens 4000); else give more text" in str(row)
    assert str(replace(row, evaluated=4000)).endswith("evaluation: give more text, or a limit that is further away.")
    assert "those may do" not in str(replace(row, held=1294, tokens=20_000))
    part = replace(row, held=1294, taken=96, available=263)
    assert "more than the 1,294 that 96 of 263 samples hold for evaluation: all of them may do (--samples 263 " in str(
        part
    )
    assert "give --samples 186 --evaluation-tokens 2500, or a limit" in str(replace(part, tokens=2500))
    assert "evaluation: give more text, or a limit" in str(replace(part, tokens=20_000))
    assert str(replace(row, held=6000)).endswith("most likely decide it: --evaluation-tokens 5000.")
