"""`--recipe` and `--scheme` through the command line: what is scored, what is named, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantaudit.common.resources import resource_dir
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.sensitivity.uncertain import MOST as UNCERTAIN
from tests.integration.test_cli import Quantaudit, corpus_file, main, quantaudit, report  # noqa: F401

STATIC = resource_dir("recipes") / "w8a8_static.yaml"


@pytest.fixture
def profile(report: Path) -> Path:  # noqa: F811
    return report / "profile.safetensors"


def simulated(path: Path) -> Simulation:
    return Simulation.model_validate_json(path.read_text())


def test_recipes_and_schemes_are_scored_beside_the_reports_own(
    quantaudit: Quantaudit,  # noqa: F811
    tiny_folder: Path,
    profile: Path,
    tmp_path: Path,
) -> None:
    odd = tmp_path / "odd.yaml"
    odd.write_text(
        "a_stage:\n  b_modifiers:\n    QuantizationModifier: {targets: ['re:.*q_proj'], scheme: FP8}\n"
        "    SmoothQuantModifier: {smoothing_strength: 0.5}\n"
    )
    smooth = resource_dir("recipes") / "w8a8_smoothquant.yaml"
    out = tmp_path / "s.json"
    code, table, err = quantaudit(
        "simulate", tiny_folder, "--profile", profile, "--out", out, "--score", "damage",
        "--recipe", STATIC, "--recipe", smooth, "--recipe", odd,
        "--scheme", "fp8_dynamic", "--scheme", "int8_static_per_tensor:minmax",
    )  # fmt: skip
    assert code == 0, err
    rows = {row.name: row for row in simulated(out).recipes}
    assert {"w8a8_static", "odd", "fp8_dynamic", "int8_static_per_tensor:minmax"} < set(rows)
    assert rows["w8a8_static"].kl == rows["int8_static_per_tensor"].kl
    assert rows["w8a8_static"].unsimulated == []
    assert any("SmoothQuant" in reason for reason in rows["odd"].unsimulated)
    assert rows["w8a8_smoothquant"].unsimulated == []
    assert rows["w8a8_smoothquant"].kl_estimate is None
    assert 0 < rows["w8a8_smoothquant"].kl != rows["w8a8_static"].kl
    assert "simulated in part" in " ".join(table.split())
    assert {row.scheme for row in simulated(out).groups} >= {"fp8_dynamic", "int8_static_per_tensor:minmax"}


def test_a_report_shows_its_recipes(
    quantaudit: Quantaudit,  # noqa: F811
    tiny_folder: Path,
    corpus_file: Path,  # noqa: F811
    profile: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "card"
    code, _, err = quantaudit(
        "report", tiny_folder, "--corpus", corpus_file, "--profile", profile, "--out", out, "--recipe", STATIC,
        "--score", "damage",
    )  # fmt: skip
    assert code == 0, err
    names = [row["name"] for row in json.loads((out / "card.json").read_text())["simulation"]["recipes"]]
    assert "w8a8_static" in names
    assert "recipe w8a8_static" in (out / "card.html").read_text()


def test_a_report_tells_what_single_groups_cost_and_correlates_with_their_kl(
    quantaudit: Quantaudit,  # noqa: F811
    tiny_folder: Path,
    corpus_file: Path,  # noqa: F811
    profile: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "card"
    code, _, err = quantaudit(
        "report", tiny_folder, "--corpus", corpus_file, "--profile", profile, "--out", out, "--single-groups", "all",
    )  # fmt: skip
    assert code == 0, err
    card = json.loads((out / "card.json").read_text())
    rows = [row for row in card["simulation"]["groups"] if row["layer"] is not None]
    alone = [row for row in rows if row["sampled"]]
    assert {row["scheme"] for row in alone} == {"int8_static_per_tensor"}
    assert {row["group"] for row in alone} == {row["group"] for row in rows}
    assert all(row["kl"] > 0 for row in alone)
    assert f"{len(alone) + UNCERTAIN + 1} of them for single groups" in " ".join(err.split())
    (found,) = (row for row in card["correlation"] if (row["outcome"], row["predictor"]) == ("kl", "amax")
                and row["scope"] == "all")  # fmt: skip
    assert (found["scheme"], found["n"]) == ("int8_static_per_tensor", len(alone))
    assert found["reading"] in (out / "card.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "missing.yaml"], "no such file"),
        (["--recipe", STATIC, "--recipe", STATIC], "would be called w8a8_static"),
        (["--scheme", "int7"], "unknown scheme"),
        (["--single-groups", "most"], "not a number of fused groups"),
        (["--scheme", "int8_dynamic_per_token:mse"], "no static input scale"),
        (["--scheme", "W4A16"], "64 columns do not divide into groups of 128"),
        (["--scheme", "W4A8"], "--scheme int4_weights_group_64_int8_dynamic_per_token, or a recipe"),
    ],
)
def test_bad_recipes_and_schemes_exit_2(
    quantaudit: Quantaudit,  # noqa: F811
    tiny_folder: Path,
    profile: Path,
    tmp_path: Path,
    arguments: list[object],
    message: str,
) -> None:
    out = tmp_path / "s.json"
    code, _, err = quantaudit("simulate", tiny_folder, "--profile", profile, "--out", out, *arguments)
    assert (code, message in " ".join(err.split()), out.exists()) == (2, True, False), err
