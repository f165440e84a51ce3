"""The export under the paper's names against a second implementation, in plain NumPy on the captured tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.paper import COMPONENTS, LEVELS, TOP, reference, reference_json
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.provenance import SampleInfo
from tests.builders import accumulate, make_samples, provenance, site_info
from tests.unit.measure.test_run import Captured, plain_capture


@pytest.fixture(scope="module")
def captured(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> Captured:
    return plain_capture(tiny_loaded.model, tiny_corpus)


@pytest.fixture(scope="module")
def exported(tiny_profile: Profile) -> dict[str, dict[str, Any]]:
    return {row["site"]: row for row in json.loads(reference_json(tiny_profile))["sites"]}


def elements(tensors: dict[int, torch.Tensor]) -> list[tuple[float, int, int, int]]:
    """(value, sample, position, channel) of every element."""
    return [
        (float(value), sample, position, channel)
        for sample, tensor in tensors.items()
        for (position, channel), value in np.ndenumerate(tensor.float().numpy())
    ]


def test_every_site_is_written(tiny_profile: Profile, exported: dict[str, dict[str, Any]]) -> None:
    assert list(exported) == [site.name for site in tiny_profile.sites]
    for site in tiny_profile.sites:
        assert exported[site.name]["component"] == COMPONENTS.get(site.kind)
    assert {row["component"] for row in exported.values()} == {*COMPONENTS.values(), None} - {"router_logits"}


def test_every_statistic_is_that_of_the_captured_tensors(
    captured: Captured, exported: dict[str, dict[str, Any]]
) -> None:
    for name, tensors in captured.items():
        x = torch.cat(list(tensors.values())).double().numpy().ravel()
        row, magnitude = exported[name], np.abs(x)
        assert (row["max"], row["min"], row["max_abs"]) == (x.max(), x.min(), magnitude.max())
        assert (row["values"], row["nan"], row["inf"]) == (x.size, 0, 0)
        for key, expected in (
            ("mean", x.mean()),
            ("std", x.std()),
            ("abs_mean", magnitude.mean()),
            ("rms", np.sqrt((x**2).mean())),
        ):
            assert row[key] == pytest.approx(expected, rel=1e-4, abs=1e-12), (name, key)
        for level in LEVELS:
            assert row["quantiles"][str(level)] == pytest.approx(np.quantile(magnitude, level), rel=1e-12)
        assert row["massive_activations"]["count"] == 0


def test_the_largest_elements_are_those_of_the_captured_tensors(
    captured: Captured, exported: dict[str, dict[str, Any]], tiny_profile: Profile, tiny_corpus: TokenizedCorpus
) -> None:
    ids = {sample.id: sample.ids for sample in tiny_corpus.samples}
    for name, tensors in captured.items():
        highest = sorted(elements(tensors), key=lambda e: (-abs(e[0]), *e[1:]))[:TOP]
        expected = [(value, tiny_profile.samples[sample].id, *place) for value, sample, *place in highest]
        actual = [(row["value"], row["sample"], row["position"], row["channel"]) for row in exported[name]["top"]]
        assert actual == expected, name
        assert all(ids[row["sample"]][row["position"]] == row["token_id"] for row in exported[name]["top"])


def test_m_is_the_largest_of_the_papers_components(tiny_profile: Profile, exported: dict[str, dict[str, Any]]) -> None:
    m = reference(tiny_profile)["M"]
    assert m["max_abs"] == max(row["max_abs"] for row in exported.values() if row["component"])
    assert exported[m["site"]]["max_abs"] == m["max_abs"]


def test_massive_activations_are_counted() -> None:
    x = torch.full((10, 10), 0.5)
    x[3, 4], x[5, 6], x[7, 8] = 3000.0, -800.0, 99.0
    x[5] *= 4  # this token has a median of its own, of which −1,600 is no thousandfold
    x[5, 6] = -1600.0
    row = reference(profile_of(x))["sites"][0]
    assert row["massive_activations"] == {
        "count": 1,
        "count_by_tensor_median": 2,
        "above": 100.0,
        "above_medians": 1000.0,
    }
    actual = [(top["value"], top["token_median"], top["massive"]) for top in row["top"][:3]]
    assert actual == [(3000.0, 0.5, True), (-1600.0, 2.0, False), (99.0, 0.5, False)]


def test_what_is_not_finite_is_null_and_what_never_fired_is_left_out() -> None:
    profile = profile_of(torch.full((2, 2), float("nan")))
    profile = Profile(
        provenance=profile.provenance.model_copy(update={"sites": [site_info("silent"), *profile.sites]}),
        statistics=profile.statistics,
    )
    data = json.loads(reference_json(profile))
    assert [row["site"] for row in data["sites"]] == ["s"]
    row = data["sites"][0]
    assert (row["nan"], row["max"], row["std"], row["quantiles"]["0.5"], row["top"]) == (4, None, None, None, [])
    assert data["M"] is None


def profile_of(x: torch.Tensor) -> Profile:
    samples = [SampleInfo(id="a", domain="d", split="calibration", tokens=len(x))]
    site = site_info("s", kind="residual", tap="output")
    return Profile(
        provenance=provenance([site], samples), statistics={("s", "calibration"): accumulate(make_samples([x]))}
    )
