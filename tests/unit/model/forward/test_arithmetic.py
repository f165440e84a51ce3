"""Which arithmetic is chosen, that every workflow runs under it, and that it is written down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quantaudit.errors import FormatError, UsageError
from quantaudit.measure.profile import Profile, merge
from quantaudit.model.forward import arithmetic
from quantaudit.model.forward.arithmetic import choose_arithmetic, computed_in, native_products
from quantaudit.model.forward.float32_products import in_float32
from quantaudit.pipeline.passes import measure_inputs, simulate_inputs
from quantaudit.pipeline.prepare import prepare
from quantaudit.pipeline.settings_of_profile import recorded_arithmetic, settings_of_profile
from quantaudit.settings import Settings
from tests.builders import tiny_model, weight_bytes

HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without native 16-bit products."""
    monkeypatch.setattr(arithmetic, "native_products", lambda dtype: False)


@pytest.mark.parametrize(
    ("ratio", "supported", "native"),
    [(0.3, False, True), (1.2, False, True), (1.6, False, False), (1.6, True, True), (6.0, True, False)],
)
def test_time_decides_and_pytorch_where_time_does_not_tell(
    ratio: float, supported: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_time_ratio", lambda dtype: ratio)
    monkeypatch.setattr(arithmetic, "_pytorch_supports", lambda dtype: supported)
    native_products.cache_clear()
    try:
        assert native_products(torch.bfloat16) is native
    finally:
        native_products.cache_clear()


@pytest.mark.skipif(sys.platform == "darwin" or os.uname().machine != "x86_64", reason="kernels of x86 are limited")
def test_kernels_limited_to_avx2_are_found_out() -> None:
    """The processor still says what it has; time does not."""
    code = (
        "import torch; from quantaudit.model.forward.arithmetic import native_products as n\n"
        "threads = torch.get_num_threads()\n"
        "print(n(torch.bfloat16), n(torch.float16), torch.get_num_threads() == threads)"
    )
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **limits}, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "False", "True"]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("dtype", HALF)
def test_what_a_processor_lacks_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    assert choose_arithmetic("auto", model) == choose_arithmetic("float32", model) == "float32"
    assert choose_arithmetic("native", model) == "native"


@pytest.mark.usefixtures("slow")
def test_float32_models_and_accelerators_have_nothing_to_emulate() -> None:
    wide, meta = tiny_model("llama", dtype=torch.float32), tiny_model("llama").to("meta")
    for model in (wide, meta):
        assert choose_arithmetic("auto", model) == choose_arithmetic("float32", model) == "native"
    with computed_in("native", wide):
        assert not in_float32(torch.float32)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(UsageError, match="--arithmetic double"):
        Settings.of(arithmetic="double")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"Text number {i}, of some {i * i} words, and no more." for i in range(12)))
    return path


def settings(folder: Path, text: Path, **changed: Any) -> Settings:
    return Settings.of(model=str(folder), corpus=str(text), evaluation_tokens=64, **changed)


@pytest.fixture(scope="module")
def measured(tiny_folder: Path, text: Path) -> Profile:
    return measure_inputs(prepare(settings(tiny_folder, text, arithmetic="float32")))


def test_a_run_says_how_its_products_were_computed(tiny_folder: Path, text: Path, measured: Profile) -> None:
    assert measured.provenance.environment.arithmetic == "float32"
    assert recorded_arithmetic(measured) == "float32"
    assert not in_float32(torch.bfloat16)

    again = prepare(settings_of_profile(measured, str(tiny_folder), corpus=str(text), evaluation_tokens=64))
    assert again.arithmetic == "float32"
    before = weight_bytes(again.loaded.model)
    simulation = simulate_inputs(again, measured)
    assert simulation.evaluation.products == "float32"
    assert weight_bytes(again.loaded.model) == before
    assert not in_float32(torch.bfloat16)

    other = prepare(
        settings_of_profile(measured, str(tiny_folder), corpus=str(text), evaluation_tokens=64, arithmetic="native")
    )
    assert simulate_inputs(other, measured).evaluation.products == "native"


def test_either_arithmetic_gives_the_same_prices(tiny_folder: Path, text: Path, measured: Profile) -> None:
    from scipy.stats import spearmanr

    prices = []
    for choice in ("native", "float32"):
        changed = settings_of_profile(
            measured, str(tiny_folder), corpus=str(text), evaluation_tokens=256, arithmetic=choice
        )
        rows = simulate_inputs(prepare(changed), measured).groups
        prices.append([row.price for row in rows if row.price is not None])
    native, emulated = prices
    assert len(native) == len(emulated) > 20
    assert spearmanr(native, emulated).statistic > 0.97
    assert sum(emulated) == pytest.approx(sum(native), rel=0.2)


def test_profiles_of_different_arithmetic_are_not_merged(measured: Profile) -> None:
    environment = measured.provenance.environment.model_copy(update={"arithmetic": "native"})
    other = Profile(
        provenance=measured.provenance.model_copy(update={"environment": environment}), statistics=measured.statistics
    )
    with pytest.raises(FormatError, match="different arithmetic"):
        merge(measured, other)


@pytest.mark.usefixtures("slow")
def test_the_user_is_informed_either_way(tiny_folder: Path, text: Path) -> None:
    said: list[str] = []
    prepare(settings(tiny_folder, text), said.append)
    assert "products are computed in float32 and rounded to bfloat16" in said
    prepare(settings(tiny_folder, text, arithmetic="native"), said.append)
    assert any("--arithmetic float32 is faster" in line for line in said)
