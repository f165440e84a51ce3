"""Writes docs/rules.md, the list of all rules, from their registry: `python -m tools.rules_page docs/rules.md`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from quantaudit.common.files import write_text
from quantaudit.common.findings import Rule, Stage, rules_of
from quantaudit.gate.catalogue import all_rules

STAGES: tuple[Stage, ...] = ("card", "recipe", "artifact", "comparison")
HEAD = """\
# Rules

Written from the code by `python -m tools.rules_page docs/rules.md`; a test holds the two in step.
`quantaudit gate --explain QA408` prints one entry. A code is never given to another rule.

Each rule has a severity of its own. Those of a recipe, QA4xx and QA5xx, a policy may change or switch `off` under
`gate: severities:`. Some findings of a rule are milder or graver than its severity, as its entry says.

- `error` fails the gate (exit code 1), `warning` does so where the policy says `fail_on: warning`.
- `inconclusive` ends it with exit code 3, unless something fails: what is not known never passes.
- `info` is for the reader.
"""


def rules_page() -> str:
    """The whole page, as Markdown ending in a newline."""
    all_rules()
    card, recipe, artifact, comparison = (list(rules_of(stage).values()) for stage in STAGES)
    parts = [
        HEAD,
        f"## QA1xx to QA3xx: findings of a card\n\n{_table(card)}",
        *(f"### {rule.code}\n\n*{rule.severity}.*\n\n{_reasons(rule)}" for rule in card),
        "## QA4xx: the recipe and the model\n",
        *(_recipe_entry(rule) for rule in recipe if rule.code.startswith("QA4")),
        "## QA5xx: the recipe and what was measured\n",
        *(_recipe_entry(rule) for rule in recipe if rule.code.startswith("QA5")),
        "## QA6xx: a quantized artifact, by `conform` and `verify`\n",
        *(_artifact_entry(rule) for rule in artifact),
        "## QA7xx: what has to be said before a comparison\n",
        *(_artifact_entry(rule) for rule in comparison),
    ]
    return "\n".join(parts)


def _table(rules: Iterable[Rule]) -> str:
    rows = "".join(f"\n| {rule.code} | {rule.title} |" for rule in rules)
    return f"| code | what was found |\n|---|---|{rows}\n"


def _recipe_entry(rule: Rule) -> str:
    return f"### {rule.code}: {rule.title}\n\n*{rule.severity}.* {rule.description}\n\n{_reasons(rule)}"


def _artifact_entry(rule: Rule) -> str:
    return f"### {rule.code}: {rule.title.rstrip('.')}\n\n*{rule.severity}.*\n\n{_reasons(rule)}"


def _reasons(rule: Rule) -> str:
    return f"- **Why**: {rule.why}\n- **What to do**: {rule.remedy}\n"


def main(page: Annotated[Path, typer.Argument(help="file to write")] = Path("docs/rules.md")) -> None:
    """Write the page."""
    write_text(page, rules_page())


if __name__ == "__main__":
    typer.run(main)
