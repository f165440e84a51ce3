"""Reading profiles, cards and corpora must stay quick: none of it may load torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quantaudit.measure.profile import Profile, save_profile
from quantaudit.provenance import SampleInfo
from tests.builders import accumulate, make_samples, provenance, site_info

HEAVY = "import sys; loaded = {'torch', 'transformers', 'llmcompressor'} & set(sys.modules); assert not loaded, loaded"
LIGHT = (
    "quantaudit.errors",
    "quantaudit.common.files",
    "quantaudit.measure.profile",
    "quantaudit.provenance",
    "quantaudit.measure.paper",
    "quantaudit.common.resources",
    "quantaudit.card.schema",
    "quantaudit.card.render",
    "quantaudit.corpus.load",
    "quantaudit.corpus.split",
    "quantaudit.simulate.records",
    "quantaudit.stats.site",
    "quantaudit.stats.maxima.stability",
    "quantaudit.stats.maxima.tail",
)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_reading_modules_never_import_torch() -> None:
    result = run(f"import {', '.join(LIGHT)}; {HEAVY}")
    assert result.returncode == 0, result.stderr


def test_this_check_would_notice_torch() -> None:
    result = run(f"import quantaudit.stats.kernels.host; {HEAVY}")
    assert "AssertionError" in result.stderr


@pytest.mark.parametrize("call", ["load_profile(path).whole('s')", "summary(load_profile(path).whole('s'))"])
def test_loading_a_profile_never_imports_torch(tmp_path: Path, call: str) -> None:
    path = tmp_path / "p.safetensors"
    samples = [SampleInfo(id="a", domain="d", split="calibration", tokens=4)]
    statistics = {("s", "calibration"): accumulate(make_samples([torch.ones(4, 3)]))}
    save_profile(Profile(provenance=provenance([site_info("s")], samples), statistics=statistics), path)
    result = run(
        "import sys; from pathlib import Path; from quantaudit.measure.profile import load_profile;"
        "from quantaudit.stats.site import summary; path = Path(sys.argv[1]);"
        f"assert {call} is not None; {HEAVY}",
        str(path),
    )
    assert result.returncode == 0, result.stderr


def test_the_builtin_corpus_loads_without_torch() -> None:
    result = run(f"from quantaudit.corpus.load import load_corpus; assert load_corpus('builtin').rows; {HEAVY}")
    assert result.returncode == 0, result.stderr
