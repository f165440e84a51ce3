"""Why a module was not measured: a cause with every reason, and one for the rows of files that name none."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

import quantaudit
from quantaudit.card.schema import Card
from quantaudit.provenance import Unmeasured, UnmeasuredCause

OF_FILES_WITHOUT_A_CAUSE: dict[UnmeasuredCause, list[str]] = {
    "undersampled": ["expert saw 0 tokens, fewer than 16", "expert saw 15 tokens, fewer than 16"],
    "other_rows": ["has 3 rows for 40 tokens: its rows are not the tokens'"],
    "uncalled": [
        "the scan around it reads its weights and never calls it: no engine quantizes its input",
        "never ran although the module around it did, which must use its weights by itself or not at all",
    ],
    "never_ran": ["never ran in the forward pass", "model.norm never ran in the forward pass"],
    "no_images": ["no images in the corpus"],
    "one_split": ["saw no token of the evaluation split"],
    "not_linear": [
        "its weights are in a MixtralExperts, which is not a Linear",
        "matrices that a Gemma3MultiModalProjector holds itself, which no recipe reaches",
    ],
    "no_module": ["no module was recognised as final norm", "no module was recognized as final norm"],
    "other": ["no image reached it"],
}


def package_rows() -> list[tuple[str, ast.Call]]:
    """Every place of the package where a row is made."""
    package = Path(quantaudit.__file__).parent
    return [
        (path.relative_to(package).as_posix(), node)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Unmeasured"
    ]


def test_the_cause_is_decided_where_the_reason_is_made() -> None:
    rows = package_rows()
    assert len(rows) >= 8
    assert [(where, row.lineno) for where, row in rows if "cause" not in {key.arg for key in row.keywords}] == []


@pytest.mark.parametrize("cause", OF_FILES_WITHOUT_A_CAUSE)
def test_a_row_of_a_file_without_a_cause_is_given_one(cause: UnmeasuredCause) -> None:
    for reason in OF_FILES_WITHOUT_A_CAUSE[cause]:
        row = Unmeasured.model_validate({"module": "x", "reason": reason, "weights": True})
        assert row.cause == cause, reason


def test_every_cause_can_be_derived() -> None:
    assert {*OF_FILES_WITHOUT_A_CAUSE, "absent"} == set(get_args(UnmeasuredCause))
    assert Unmeasured(module="x", reason="the MLP has no gate", absent=True).cause == "absent"


def test_a_cards_schema_does_not_ask_for_a_cause() -> None:
    schema = Card.model_json_schema(mode="serialization")["$defs"]["Unmeasured"]
    assert "cause" in schema["properties"]
    assert "cause" not in schema["required"]


def test_a_cause_that_is_given_is_kept() -> None:
    row = Unmeasured(module="x", reason="expert saw 3 tokens, fewer than 16", cause="other")
    assert row.cause == "other"
    assert Unmeasured.model_validate_json(row.model_dump_json()) == row
