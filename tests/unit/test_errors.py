"""Every error says what, where and what to do, and exits with 2."""

from __future__ import annotations

import pytest

from quantaudit import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "QuantauditError"])
def test_every_error_is_a_quantaudit_error_with_exit_code_2(name: str) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, errors.QuantauditError)
    assert cls.exit_code == 2
    assert name in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("where", "hint", "expected"),
    [
        (None, None, "broken"),
        ("f:3", None, "f:3: broken"),
        (None, "mend it", "broken\nmend it"),
        ("f:3", "mend it", "f:3: broken\nmend it"),
    ],
)
def test_an_error_prints_where_what_and_the_remedy(where: str | None, hint: str | None, expected: str) -> None:
    assert str(errors.QuantauditError("broken", where=where, hint=hint)) == expected
