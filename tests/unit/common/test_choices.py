"""Names that are checked without the libraries that own them, held equal to theirs."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

from quantaudit.common import choices
from quantaudit.errors import UsageError
from quantaudit.quant.observers import OBSERVERS
from quantaudit.quant.schemes import NAMED, STATIC_INPUTS, find_scheme
from quantaudit.settings import Settings


def test_names_are_those_of_the_schemes_and_observers() -> None:
    assert tuple(NAMED) == choices.SCHEMES
    assert tuple(STATIC_INPUTS) == choices.STATIC_SCHEMES
    assert tuple(OBSERVERS) == choices.OBSERVERS


def test_presets_are_those_of_compressed_tensors() -> None:
    assert {*choices.PRESETS, "UNQUANTIZED"} == {*PRESET_SCHEMES}


@pytest.mark.parametrize("preset", [*choices.PRESETS, *choices.SCHEMES])
def test_every_name_gives_a_scheme(preset: str) -> None:
    assert find_scheme(choices.check_scheme(preset)).name


def test_device_types_are_those_that_torch_takes() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.device("abacus")
    listed = str(caught.value).partition("Expected one of ")[2].partition(" device type")[0]
    assert set(listed.split(", ")) == set(choices.DEVICES)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1", "mps", "xpu:0"])
def test_devices_of_some_machine_pass(name: str) -> None:
    assert choices.check_device(name) == name


@pytest.mark.parametrize("name", ["gpu", "", "cpu0", "auto:0", "cuda:", "cuda:one", "cuda:-1", "meta", "🐢"])
def test_devices_of_no_machine_are_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        choices.check_device(name)
    assert caught.value.where == f"--device {name}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "fp99"},
        {"device": "gpu"},
        {"score": "guess"},
        {"single_groups": "-1"},
        {"experts": "some"},
        {"schemes": ("INT99",)},
        {"schemes": ("FP8:guess",)},
    ],
)
def test_settings_check_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Settings.of(**wrong)  # type: ignore[arg-type]
