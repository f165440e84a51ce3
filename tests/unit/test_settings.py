"""Options by name and the parts that hold them are one list, and a wrong one is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from quantaudit.cli.options import PARAMETERS
from quantaudit.errors import UsageError
from quantaudit.settings import PARTS, CaseOptions, CaseSpec, Options, Settings


def test_options_are_the_fields_of_all_parts() -> None:
    held = {item.name: get_type_hints(part)[item.name] for part in PARTS.values() for item in fields(part)}
    held = {name: hint for name, hint in held.items() if name not in {"model", "corpus"}}
    assert get_type_hints(Options) == held


def test_options_of_a_case_are_its_fields_with_a_default_and_its_model() -> None:
    assert set(get_type_hints(CaseOptions)) == {item.name for item in fields(CaseSpec)} - {"recipe", "card"}


@pytest.mark.parametrize("part", PARAMETERS)
def test_every_field_is_an_option_of_the_command_line(part: type[Any]) -> None:
    assert set(PARAMETERS[part]) == {item.name for item in fields(part)}


def test_an_option_lands_in_its_part() -> None:
    settings = Settings.of("m", "c", samples=4, batch_size=2, dtype="float16", evaluation_tokens=32)
    assert (settings.model.model, settings.corpus.corpus) == ("m", "c")
    assert (settings.corpus.samples, settings.measure.batch_size) == (4, 2)
    assert (settings.model.dtype, settings.simulate.evaluation_tokens) == ("float16", 32)
    assert settings.changed(samples=5).corpus.samples == 5


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(UsageError, match="sampels"):
        Settings.of(sampels=4)  # type: ignore[call-arg]
