"""What every code means, from the rules themselves.

`python -m quantaudit.gate.catalogue docs/rules.md` writes the page anew.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from quantaudit.card.judge import findings
from quantaudit.card.judge.loading import ENTRIES
from quantaudit.common.files import write_text
from quantaudit.conform.rules.catalogue import CODES, Code
from quantaudit.errors import UsageError
from quantaudit.gate.rules import RULES, Rule

_HEAD = """\
# Rules

Written from the code by `python -m quantaudit.gate.catalogue docs/rules.md`; a test holds the two in step.
`quantaudit gate --explain QA408` prints one entry. A code is never given to another rule.

Each rule has a severity of its own, which a policy may change or switch `off` under `gate: severities:`. Some findings
of a rule are milder or graver than its severity, as its entry says.

- `error` fails the gate (exit code 1), `warning` does so where the policy says `fail_on: warning`.
- `inconclusive` ends it with exit code 3, unless something fails: what is not known never passes.
- `info` is for the reader.
"""


def explain(code: str) -> str:
    """One code in words. Raises UsageError where there is no such code."""
    known = card_codes()
    code = code.upper()
    if code in RULES:
        rule = RULES[code]
        return "\n".join(
            [
                f"{code}: {rule.title} ({rule.severity})",
                "",
                _first(rule),
                f"Why: {rule.why}",
                f"What to do: {rule.remedy}",
            ]
        )
    if code in ENTRIES:
        entry = ENTRIES[code]
        return f"{code}: {known[code]} (error)\n\nWhy: {entry.why}\nWhat to do: {entry.remedy}"
    if code in known:
        return (
            f"{code}: {known[code]}\n\nA finding of the card, made by `quantaudit report`; its entry there says more."
        )
    if code in CODES:
        row = CODES[code]
        return "\n".join(
            [
                f"{code}: {row.title} ({row.severity})",
                "",
                "A finding about a quantized artifact, by `quantaudit conform` or `verify`.",
                f"Why: {row.why}",
                f"What to do: {row.remedy}",
            ]
        )
    raise UsageError(
        "no such rule", where=f"--explain {code}", hint=f"one of {', '.join(sorted({*known, *RULES, *CODES}))}"
    )


def rules_page() -> str:
    """The whole page, as Markdown ending in a newline."""
    parts = [_HEAD]
    parts.append("## QA1xx to QA3xx: findings of a card\n\n" + _table(card_codes()))
    parts += [
        f"### {code}\n\n- **Why**: {entry.why}\n- **What to do**: {entry.remedy}\n"
        for code, entry in sorted(ENTRIES.items())
    ]
    for prefix, title in (
        ("QA4", "QA4xx: the recipe and the model"),
        ("QA5", "QA5xx: the recipe and what was measured"),
    ):
        parts.append(f"## {title}\n")
        parts += [_entry(rule) for code, rule in sorted(RULES.items()) if code.startswith(prefix)]
    parts.append("## QA6xx: a quantized artifact, by `conform` and `verify`\n")
    parts += [_artifact_entry(code, row) for code, row in sorted(CODES.items())]
    return "\n".join(parts)


def card_codes() -> dict[str, str]:
    """Codes of a card's findings and what they say, from the docstrings of the functions that make them."""
    found: dict[str, str] = {}
    for _, function in inspect.getmembers(findings, inspect.isfunction):
        text = (inspect.getdoc(function) or "").partition("\n")[0]
        found.update(re.findall(r"(QA\d{3}): (.+?)(?:; (?=QA)|$)", text))
    return {code: text[0].upper() + text[1:].rstrip(".") + "." for code, text in found.items()}


def _table(codes: Mapping[str, str]) -> str:
    rows = "".join(f"\n| {code} | {text} |" for code, text in sorted(codes.items()))
    return f"| code | what was found |\n|---|---|{rows}\n"


def _entry(rule: Rule) -> str:
    return (
        f"### {rule.code}: {rule.title}\n\n*{rule.severity}.* {_first(rule)}\n\n"
        f"- **Why**: {rule.why}\n- **What to do**: {rule.remedy}\n"
    )


def _artifact_entry(code: str, row: Code) -> str:
    return (
        f"### {code}: {row.title.rstrip('.')}\n\n*{row.severity}.*\n\n"
        f"- **Why**: {row.why}\n- **What to do**: {row.remedy}\n"
    )


def _first(rule: Rule) -> str:
    return " ".join((inspect.getdoc(rule.check) or "").split())


def main(arguments: list[str]) -> None:
    """Write the page to the file named first, or to standard output."""
    if arguments:
        write_text(Path(arguments[0]), rules_page())
    else:
        sys.stdout.write(rules_page())


if __name__ == "__main__":
    main(sys.argv[1:])
