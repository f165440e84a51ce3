"""JSON within limits."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.common.reading.json_document import DEEPEST, check_json, check_text, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_is_read_by_all(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text, unique=True) == value
    check_json(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        ("[" * 100_000, f"nested deeper than {DEEPEST} levels"),
        ("[" * (DEEPEST + 5) + "]" * (DEEPEST + 5), f"nested deeper than {DEEPEST} levels"),
        ("9" * 5000, "limit"),
        ("[1,", "Expecting value"),
        ('"' + "\\ud8", "Invalid"),
    ],
)
def test_what_passes_a_limit_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_json(text, unique=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"a": ["\\uD800"]}', '{"\\udfff": 1}'])
def test_half_of_a_character_is_no_text(text: str) -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        check_text(text, parse_json(text))
    check_text('"\\ud83d\\ude42"', "\U0001f642")


def test_constants_pass_where_python_writes_them_and_not_where_a_file_decides() -> None:
    assert parse_json("[Infinity]") == [float("inf")]
    for text in ("[NaN]", '{"a": -Infinity}'):
        with pytest.raises(ValueError, match="no number that JSON has"):
            check_json(text)
    with pytest.raises(ValueError, match="'a' is given twice"):
        check_json('[{"a": 1, "a": 1}]')
    with pytest.raises(ValueError, match="nested deeper"):
        check_json("[" * 100_000)
