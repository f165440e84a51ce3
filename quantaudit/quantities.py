"""What a number in a file may be, named once: every record's fields are of these, and so is the card's JSON Schema.

A number that is not finite is null in a file, and read as null: it is not known. What lies outside of its domain (a
negative KL, a share above one) is refused by whoever reads it. Booleans and words are no numbers.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("Input should be a number")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_word(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("Input should be a whole number")
    return value


def _within(low: float, high: float) -> BeforeValidator:
    """A number beyond an end of its domain by no more than sums are rounded by is at that end."""

    def read(value: Any) -> Any:
        value = _finite_or_none(value)
        if isinstance(value, float | int):
            for end in (low, high):
                if value != end and math.isclose(value, end, rel_tol=ROUNDED) and not low <= value <= high:
                    return end
        return value

    return BeforeValidator(read)


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("Input should not be blank")
    return value


Name = Annotated[str, AfterValidator(_not_blank), Field(json_schema_extra={"pattern": r"\S"})]
"""A text that is not blank."""
ROUNDED = 1e-9
"""Relative error of a float64 sum of many terms, at most: shares may sum to a little more than one."""
_KNOWN = BeforeValidator(_finite_or_none)
Number = Annotated[float | None, _KNOWN]
"""A float that is null where it is not finite."""
Magnitude = Annotated[Annotated[float, Field(ge=0)] | None, _KNOWN]
"""A number that is never negative: a KL, a price, a damage, an absolute value, a standard error."""
Share = Annotated[Annotated[float, Field(ge=0, le=1)] | None, _within(0.0, 1.0)]
"""A part of one."""
Correlation = Annotated[Annotated[float, Field(ge=-1, le=1)] | None, _within(-1.0, 1.0)]
"""A coefficient of correlation."""
Perplexity = Annotated[Annotated[float, Field(ge=1)] | None, _within(1.0, math.inf)]
"""exp of a mean loss, which is never negative."""
Ratio = Annotated[Annotated[float, Field(ge=1)] | None, _within(1.0, math.inf)]
"""The larger over the smaller of two."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""How long something took."""
Count = Annotated[int, Field(ge=0), BeforeValidator(_no_word)]
"""How many, or an index counted from 0."""
Positive = Annotated[int, Field(ge=1), BeforeValidator(_no_word)]
"""How many, of what there is one at least."""


def _possible(shape: list[int]) -> list[int]:
    if math.prod(shape) > ELEMENTS:
        raise ValueError(f"no tensor has more than {ELEMENTS:,} elements")
    return shape


ELEMENTS = 2**53
"""Of a tensor, at most; a trillion parameters are a few 2⁴⁰ in all."""
Shape = Annotated[list[Count], AfterValidator(_possible)]
"""Lengths of a tensor's axes."""


def _above(value: Any) -> Any:
    return math.inf if value is None else value


def _below(value: Any) -> Any:
    return 0.0 if value is None else value


_NUMBER_OR_NULL = WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]})
UpperLimit = Annotated[float, Field(ge=0), BeforeValidator(_above), _NUMBER_OR_NULL]
"""What a number may not exceed; null in a file is no limit, infinity here."""
LowerLimit = Annotated[float, Field(ge=0), BeforeValidator(_below), _NUMBER_OR_NULL]
"""What a number that is never negative may not fall below; null in a file is no limit, 0 here."""
