"""Each format is read back by somebody else's reader: SARIF's schema, a JUnit parser, GitHub's rules of escaping."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from junitparser import Error, Failure, JUnitXml
from rich.console import Console
from sarif_kit.validate import validation_errors

from quantaudit.cli.output.gate import show
from quantaudit.gate.formats import FORMATS, to_github, to_json, to_junit, to_sarif
from quantaudit.gate.report import GateFinding, GateReport, SchemeUse, Score

HOSTILE = "50 % of `a]]>b`,\nc: ::error::<script>\x07\x1b[31m</failure> &amp; \ufffe ü [bold]"


def finding(**changes: Any) -> GateFinding:
    finding = GateFinding(
        code="QA408",
        title="A fused group has mixed schemes",
        severity="error",
        fails=True,
        module="layers.0.self_attn.qkv_proj",
        line=7,
        message="3 groups mixed",
        value=3.0,
        threshold=None,
        reason="Because.",
        remedy="Treat the group alike.",
    )
    return finding.model_copy(update=changes)


def report(*findings: GateFinding, **changes: Any) -> GateReport:
    report = GateReport(
        quantaudit_version="0.1.0",
        recipe="recipes/my recipe.yaml",
        digest="d" * 64,
        model="model",
        fingerprint="f" * 64,
        policy="default",
        outcome="fail",
        headline="3 groups mixed.",
        linears=22,
        quantized=[SchemeUse(title="INT8 weights per channel", modules=21)],
        score=Score(source="measured", kl=0.5, kl_stderr=0.01, top1=0.7, tokens=64, note="measured"),
        findings=list(findings),
        rules={"QA401": "The recipe quantizes nothing", "QA408": "A fused group has mixed schemes", "QA417": "Beyond"},
    )
    return report.model_copy(update=changes)


WARNING = finding(code="QA401", severity="warning", fails=False, line=None, module=None)
OPEN = finding(code="QA417", severity="inconclusive", fails=False)
REPORTS = [
    report(finding(), WARNING, OPEN),
    report(finding(message=HOSTILE, remedy=HOSTILE, module=HOSTILE, title=HOSTILE), recipe=HOSTILE, model=HOSTILE),
    report(finding(value=None, threshold=0.1), recipe="/absolute/path/ü %.yaml"),
    report(outcome="pass"),
    report(OPEN, outcome="inconclusive"),
]


@pytest.mark.parametrize("example", REPORTS)
def test_json_is_the_report(example: GateReport) -> None:
    assert GateReport.model_validate_json(to_json(example)) == example


@pytest.mark.parametrize("example", REPORTS)
def test_sarif_is_valid(example: GateReport) -> None:
    log = json.loads(to_sarif(example))
    assert validation_errors(log) == []
    (run,) = log["runs"]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [(row["ruleId"], ids[row["ruleIndex"]]) for row in run["results"]] == [
        (row.code, row.code) for row in example.findings
    ]
    assert run["invocations"][0]["exitCode"] == example.exit_code


def test_the_sarif_check_would_notice() -> None:
    log = json.loads(to_sarif(REPORTS[0]))
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert validation_errors(log)


def test_sarif_levels_and_places() -> None:
    results = json.loads(to_sarif(REPORTS[0]))["runs"][0]["results"]
    assert [row["level"] for row in results] == ["error", "warning", "warning"]
    place = results[0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "recipes/my%20recipe.yaml"
    assert place["region"] == {"startLine": 7}
    absolute = json.loads(to_sarif(REPORTS[2]))["runs"][0]["artifacts"][0]["location"]["uri"]
    assert absolute == "file:///absolute/path/%C3%BC%20%25.yaml"


@pytest.mark.parametrize("example", REPORTS)
def test_junit_is_read_by_a_parser(example: GateReport) -> None:
    suites = JUnitXml.fromstring(to_junit(example).encode())
    (suite,) = suites
    cases = list(suite)
    assert [case.name.split()[0] for case in cases] == list(example.rules)
    outcomes = {case.name.split()[0]: [type(result) for result in case.result] for case in cases}
    expected: dict[str, list[type]] = {code: [] for code in example.rules}
    for row in example.findings:
        if row.fails or row.severity == "inconclusive":
            expected[row.code] = [Failure if row.fails else Error]
    assert outcomes == expected
    assert (suite.tests, suite.failures, suite.errors) == (
        len(cases),
        sum(kinds == [Failure] for kinds in outcomes.values()),
        sum(kinds == [Error] for kinds in outcomes.values()),
    )
    assert (suite.failures + suite.errors > 0) == (example.outcome != "pass")


def test_junit_keeps_what_a_warning_says() -> None:
    (suite,) = JUnitXml.fromstring(to_junit(REPORTS[0]).encode())
    (case,) = [case for case in suite if case.name.startswith("QA401")]
    assert "3 groups mixed" in case.system_out


COMMAND = re.compile(r"^::(error|warning|notice) ((?:\w+=[^:,\r\n]*,?)+)::([^\r\n]*)$")


def decoded(text: str) -> str:
    for code, character in (("%0A", "\n"), ("%0D", "\r"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


@pytest.mark.parametrize("example", REPORTS)
def test_github_annotations_are_well_formed(example: GateReport) -> None:
    lines = to_github(example).removesuffix("\n").split("\n")
    assert len(lines) == len(example.findings) + 1
    matches = [COMMAND.match(line) for line in lines]
    assert all(matches), lines
    for row, match in zip(example.findings, matches, strict=False):
        assert match is not None
        properties = {key: decoded(value) for key, _, value in (part.partition("=") for part in match[2].split(","))}
        assert properties == {"file": example.recipe, "line": str(row.line or 1), "title": f"{row.code} {row.title}"}
        assert decoded(match[3]) == f"{row.message}. {row.remedy}"
        assert match[1] == ("error" if row.fails or row.severity == "inconclusive" else row.severity)


@pytest.mark.parametrize("example", REPORTS)
def test_text_shows_every_finding_and_reads_no_markup(example: GateReport) -> None:
    out = io.StringIO()
    show(example, Console(file=out, width=200, force_terminal=False))
    text = out.getvalue()
    assert text.startswith(example.outcome.upper())
    assert all(row.code in text for row in example.findings)
    assert "KL 0.500 ± 0.01 nats per token, 70.0% of top-1 tokens kept: measured" in text
    if example is REPORTS[1]:
        assert "[bold]" in text


def test_every_format_is_listed() -> None:
    assert list(FORMATS) == ["json", "github", "junit", "sarif"]
