"""The registry, its documentation, and what a policy makes of findings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantaudit.common.findings import find_rule, rule, rules_of
from quantaudit.common.resources import resource_dir
from quantaudit.conform.rules import catalogue
from quantaudit.errors import FormatError, UsageError
from quantaudit.gate.catalogue import explain
from quantaudit.gate.evidence import gather
from quantaudit.gate.report import GateReport
from quantaudit.gate.rules import RULES
from quantaudit.gate.run import check_severities, judge
from quantaudit.policy import Policy, load_policy
from quantaudit.recipe.parse import parse_recipe
from tests.recipe_cards import card_of
from tools.rules_page import rules_page

DYNAMIC = "s_stage: {q_modifiers: {QuantizationModifier: {scheme: W8A8, ignore: [lm_head, nothing]}}}"


STATIC = (resource_dir("recipes") / "w8a8_static.yaml").read_text(encoding="utf-8")


def with_gate(policy: Policy, **changes: object) -> Policy:
    return policy.model_copy(update={"gate": policy.gate.model_copy(update=changes)})


def judged(policy: Policy, text: str = DYNAMIC) -> GateReport:
    return judge(gather(parse_recipe(text, "r.yaml"), card_of(), policy, None))


def test_the_page_is_in_step_with_the_rules() -> None:
    page = Path(__file__).parents[3] / "docs" / "rules.md"
    assert page.read_text(encoding="utf-8") == rules_page()


def test_every_code_is_documented_once() -> None:
    page = rules_page()
    for code, row in RULES.items():
        assert re.fullmatch(r"QA[45]\d\d", code)
        assert page.count(f"### {code}: {row.title}") == 1
        assert row.check.__doc__
    assert list(RULES) == sorted(RULES)


def test_codes_of_cards_are_not_given_to_recipes() -> None:
    used = set(re.findall(r"\| (QA\d+) \|", rules_page()))
    assert used == set(rules_of("card"))
    assert not used & set(RULES)
    assert all(re.fullmatch(r"QA[123]\d\d", code) and row.check for code, row in rules_of("card").items())


@pytest.mark.parametrize("code", rules_of("card"))
def test_codes_of_a_card_say_why_and_what_to_do(code: str) -> None:
    entry = find_rule(code)
    for text in (explain(code.lower()), rules_page()):
        assert entry.why in text
        assert entry.remedy in text


def test_every_code_of_an_artifacts_findings_is_explained() -> None:
    folder = Path(catalogue.__file__).parent
    sources = [path for path in (*folder.glob("*.py"), folder.parent / "model_check.py") if path.stem != "catalogue"]
    used = {code for path in sources for code in re.findall(r'"(QA6\d\d)"', path.read_text(encoding="utf-8"))}
    assert used == set(rules_of("artifact"))
    assert not used & (set(RULES) | set(rules_of("card")))
    for code, row in rules_of("artifact").items():
        explanation = explain(code.lower())
        assert row.title in explanation
        assert f"Why: {row.why}" in explanation
        assert f"What to do: {row.remedy}" in explanation
        assert f"### {code}: {row.title.rstrip('.')}" in rules_page()


@pytest.mark.parametrize(
    ("kind", "text", "reported"),
    [("mistral", STATIC, True), ("mistral", DYNAMIC, False), ("llama", STATIC, False)],
)
def test_a_model_whose_mask_calibration_loses_is_reported_where_the_recipe_calibrates(
    kind: str, text: str, reported: bool
) -> None:
    card = card_of()
    card = card.model_copy(update={"model": card.model.model_copy(update={"model_type": kind})})
    report = judge(gather(parse_recipe(text, "r.yaml"), card, load_policy(), None))
    assert any(finding.code == "QA419" for finding in report.findings) == reported


def test_experts_that_oneshot_would_replace_by_others_leave_the_gate_undecided() -> None:
    card = card_of()
    model = card.model.model_copy(update={"split_wrongly": ["model.layers.0.mlp.experts"]})
    recipe = parse_recipe(DYNAMIC, "r.yaml")
    assert judge(gather(recipe, card, load_policy(), None)).outcome == "pass"
    report = judge(gather(recipe, card.model_copy(update={"model": model}), load_policy(), None))
    assert (report.outcome, report.exit_code) == ("inconclusive", 3)
    assert [row.module for row in report.findings if row.code == "QA428"] == ["model.layers.0.mlp.experts"]


def test_a_code_is_given_once() -> None:
    with pytest.raises(ValueError, match="QA408 is taken"):
        rule("QA408", "Another", severity="info", why="", remedy="")(lambda evidence: [])
    assert RULES["QA408"].title == "A fused group has mixed schemes"


@pytest.mark.parametrize("code", ["QA301", "qa408", *RULES])
def test_every_code_explains_itself(code: str) -> None:
    text = explain(code)
    assert text.startswith(code.upper())
    assert len(text.splitlines()) >= 3


def test_an_unknown_code_is_an_error() -> None:
    with pytest.raises(UsageError, match="no such rule"):
        explain("QA999")


def test_a_warning_fails_where_the_policy_says_so() -> None:
    default = load_policy()
    assert judged(default).outcome == "pass"
    strict = judged(with_gate(default, fail_on="warning"))
    assert (strict.outcome, strict.exit_code) == ("fail", 1)
    assert [row.code for row in strict.findings if row.fails] == ["QA403"]


@pytest.mark.parametrize(
    ("severity", "outcome", "code"),
    [("error", "fail", 1), ("inconclusive", "inconclusive", 3), ("info", "pass", 0), ("off", "pass", 0)],
)
def test_a_policy_sets_severities(severity: str, outcome: str, code: int) -> None:
    report = judged(with_gate(load_policy(), severities={"QA403": severity}))
    assert (report.outcome, report.exit_code) == (outcome, code)
    assert ("QA403" in report.rules) == (severity != "off")
    assert [row.severity for row in report.findings if row.code == "QA403"] == ([] if severity == "off" else [severity])


def test_a_policy_may_not_name_a_rule_that_does_not_exist() -> None:
    with pytest.raises(FormatError, match="no such rule: QA999"):
        check_severities(with_gate(load_policy(), severities={"QA999": "off"}))


@pytest.mark.parametrize("code", ["QA104", "QA602"])
def test_a_policy_may_not_name_a_rule_that_is_not_the_gates(code: str) -> None:
    with pytest.raises(FormatError, match=f"{code} is a rule of a card or an artifact"):
        check_severities(with_gate(load_policy(), severities={code: "off"}))


@pytest.mark.parametrize("name", ["default", "strict", "lenient"])
def test_shipped_policies_fit_the_rules(name: str) -> None:
    policy = load_policy(name)
    check_severities(policy)
    assert policy.name == name


def test_shipped_policies_are_ordered() -> None:
    strict, default, lenient = (load_policy(name) for name in ("strict", "default", "lenient"))
    assert strict.kl.care <= default.kl.care <= lenient.kl.care
    assert strict.kl.ready <= default.kl.ready <= lenient.kl.ready
    assert strict.top1.care >= default.top1.care >= lenient.top1.care
    assert strict.top1.ready >= default.top1.ready >= lenient.top1.ready
    assert (strict.gate.fail_on, default.gate.fail_on, lenient.gate.fail_on) == ("warning", "error", "error")


def test_policies_extend_each_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nextends: strict\ndamage: {warning: 0.5, reason: none}\n")
    (tmp_path / "own.yaml").write_text("name: own\nextends: base.yaml\n")
    policy = load_policy(str(tmp_path / "own.yaml"))
    assert (policy.name, policy.damage.warning, policy.kl) == ("own", 0.5, load_policy("strict").kl)


def test_off_is_a_word_in_a_policy(tmp_path: Path) -> None:
    """YAML reads it as false."""
    gate = "{fail_on: error, severities: {QA403: off}, estimate: {accept: true, margin: 2, reason: x}, reason: x}"
    (tmp_path / "own.yaml").write_text(f"name: own\nextends: default\ngate: {gate}\n")
    assert load_policy(str(tmp_path / "own.yaml")).gate.severities == {"QA403": "off"}


@pytest.mark.parametrize(("name", "problem"), [("a\\0b", "no such policy"), ("a\\0b.yaml", "cannot be read")])
def test_a_policy_that_extends_what_no_file_can_be_called_is_an_error(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "own.yaml").write_text(f'name: own\nextends: "{name}"\n')
    with pytest.raises(FormatError, match=problem):
        load_policy(str(tmp_path / "own.yaml"))


def test_a_policy_that_extends_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nextends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("name: b\nextends: a.yaml\n")
    with pytest.raises(FormatError, match="extends itself"):
        load_policy(str(tmp_path / "a.yaml"))


def test_a_policy_that_extends_nothing_known_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nextends: lost\n")
    with pytest.raises(FormatError, match="no such policy"):
        load_policy(str(tmp_path / "a.yaml"))


def test_explaining_and_formatting_never_import_torch() -> None:
    code = (
        "import sys; import quantaudit.gate.catalogue as d, quantaudit.gate.formats, quantaudit.cli.output.gate;"
        "import tools.rules_page as p; d.explain('QA408'); p.rules_page();"
        "from quantaudit.policy import load_policy; load_policy('strict');"
        "assert not {'torch', 'transformers', 'llmcompressor', 'compressed_tensors'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
