"""A gate's report for machines: JSON, GitHub annotations, JUnit, SARIF. Pure text, and no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from quantaudit.gate.report import GateFinding, GateReport, score_text
from quantaudit.gate.rules import RULES


def to_json(report: GateReport) -> str:
    """The whole report, for `GateReport.model_validate_json`."""
    return report.model_dump_json(indent=1) + "\n"


def to_github(report: GateReport) -> str:
    """One workflow command a finding, which GitHub shows at the recipe's line, then the outcome as a notice."""
    lines = []
    for finding in report.findings:
        place = {"file": report.recipe, "line": finding.line or 1, "title": f"{finding.code} {finding.title}"}
        lines.append(_command(_github_level(finding), place, f"{finding.message}. {finding.remedy}"))
    level = {"pass": "notice", "fail": "error", "inconclusive": "error"}[report.outcome]
    title = {"title": f"quantaudit gate: {report.outcome}", "file": report.recipe}
    text = f"{report.headline} Policy {report.policy_identity}."
    return "\n".join([*lines, _command(level, title, text)]) + "\n"


def _github_level(finding: GateFinding) -> str:
    if finding.fails or finding.severity == "inconclusive":
        return "error"
    return "warning" if finding.severity == "warning" else "notice"


def _command(name: str, properties: dict[str, Any], message: str) -> str:
    # https://docs.github.com/actions/reference/workflow-commands-for-github-actions: a property may hold neither colon
    # nor comma, and nothing may hold a line break.
    inside = ",".join(
        f"{key}={_escaped(str(value)).replace(':', '%3A').replace(',', '%2C')}" for key, value in properties.items()
    )
    return f"::{name} {inside}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def to_junit(report: GateReport) -> str:
    """One test case a rule: a failure where it fails the gate, an error where it is inconclusive, else output."""
    by_rule: dict[str, list[GateFinding]] = {code: [] for code in report.rules}
    for finding in report.findings:
        by_rule[finding.code].append(finding)
    failed = [code for code, rows in by_rule.items() if any(row.fails for row in rows)]
    open_ = [
        code
        for code, rows in by_rule.items()
        if code not in failed and any(row.severity == "inconclusive" for row in rows)
    ]
    totals = {"tests": len(by_rule), "failures": len(failed), "errors": len(open_), "skipped": 0, "time": 0}
    attributes = {key: str(value) for key, value in totals.items()}
    root = ElementTree.Element("testsuites", {"name": "quantaudit gate", **attributes})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _legal(report.recipe), **attributes})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in {"policy": report.policy_identity, "score": score_text(report.score, report.limits)}.items():
        ElementTree.SubElement(properties, "property", {"name": key, "value": _legal(value)})
    for code, rows in by_rule.items():
        name = {"name": f"{code} {report.rules[code]}", "classname": "quantaudit.gate", "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", name)
        text = "\n".join(_junit_text(report, row) for row in rows)
        if code in failed or code in open_:
            tag, kind = ("failure", "error") if code in failed else ("error", "inconclusive")
            ElementTree.SubElement(case, tag, {"message": _legal(rows[0].message), "type": kind}).text = _legal(text)
        elif rows:
            ElementTree.SubElement(case, "system-out").text = _legal(text)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _junit_text(report: GateReport, finding: GateFinding) -> str:
    where = f"{report.recipe}:{finding.line}: " if finding.line else ""
    return f"{where}{finding.severity}: {finding.message}\n{finding.reason}\n{finding.remedy}"


def _legal(text: str) -> str:
    """Without what XML 1.0 cannot hold even escaped."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def to_sarif(report: GateReport) -> str:
    """SARIF 2.1.0: one run, all rules with their documentation, one result a finding."""
    codes = list(report.rules)
    rules = [
        {
            "id": code,
            "shortDescription": {"text": f"{report.rules[code]}."},
            "fullDescription": {"text": RULES[code].why},
            "help": {"text": RULES[code].remedy},
            "defaultConfiguration": {"level": _level(RULES[code].severity)},
        }
        for code in codes
        if code in RULES
    ]
    run = {
        "tool": {"driver": {"name": "quantaudit", "semanticVersion": report.quantaudit_version, "rules": rules}},
        "invocations": [
            {"executionSuccessful": True, "exitCode": report.exit_code, "exitCodeDescription": report.outcome}
        ],
        "artifacts": [{"location": {"uri": _uri(report.recipe)}}],
        "results": [_result(report, finding, codes.index(finding.code)) for finding in report.findings],
        "properties": {
            "model": report.model,
            "policy": report.policy,
            "policyDigest": report.policy_digest,
            "extends": [one.model_dump() for one in report.extends],
            "digest": report.digest,
            "score": report.score.model_dump(include=_SHOWN),
        },
    }
    schema = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


_SHOWN = {"source", "kl", "kl_low", "kl_high", "top1", "top1_low", "top1_high", "tokens", "samples"}
"""What SARIF says of the score."""


def _result(report: GateReport, finding: GateFinding, index: int) -> dict[str, Any]:
    physical = {
        "artifactLocation": {"uri": _uri(report.recipe), "index": 0},
        "region": {"startLine": finding.line or 1},
    }
    location: dict[str, Any] = {"physicalLocation": physical}
    if finding.module is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.module, "kind": "module"}]
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": "error" if finding.fails else _level(finding.severity),
        "message": {"text": f"{finding.message}. {finding.remedy}"},
        "locations": [location],
        "properties": {"severity": finding.severity, "value": finding.value, "threshold": finding.threshold},
    }


def _level(severity: str) -> str:
    """SARIF has no level for what could not be concluded; a warning is shown, and the exit code says so."""
    return {"error": "error", "inconclusive": "warning", "warning": "warning"}.get(severity, "note")


def _uri(path: str) -> str:
    """A path as a URI reference: relative ones stay so, and are resolved against the repository by whoever reads."""
    pure = PurePath(path)
    return pure.as_uri() if pure.is_absolute() else quote(pure.as_posix())


FORMATS: dict[str, Callable[[GateReport], str]] = {
    "json": to_json,
    "github": to_github,
    "junit": to_junit,
    "sarif": to_sarif,
}
"""What `--format` can be, other than `text`."""
