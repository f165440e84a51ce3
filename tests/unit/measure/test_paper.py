"""The export under the paper's names against a second implementation, in plain NumPy on the captured tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.paper import reference, reference_json
from quantaudit.measure.paper.reference import LEVELS, SUBSETS, TOP
from quantaudit.measure.paper.token_ratios import KINDS, Moments, ratios_of, token_ratios
from quantaudit.measure.profile import Profile
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.model.loading.load import LoadedModel
from quantaudit.provenance import COMPONENTS, SampleInfo
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


def test_ratios_of_tokens_are_those_of_the_captured_tensors(
    captured: Captured, tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus
) -> None:
    kinds = {site.name: site.kind for site in tiny_loaded.architecture.sites}
    for batch_size in (1, 3):  # with padding
        found = token_ratios(tiny_loaded, tiny_corpus, batch=BatchLimit(batch_size))
        assert set(found) == {name for name in captured if kinds[name] in KINDS}
        for name, row in found.items():
            x = np.abs(torch.cat(list(captured[name].values())).double().numpy())
            ratios = x.max(1) / np.partition(x, (x.shape[1] - 1) // 2, 1)[:, (x.shape[1] - 1) // 2]
            assert row.tokens == len(x)
            assert row.highest == pytest.approx(ratios.max(), rel=1e-2)
            assert row.mean == pytest.approx(ratios.mean(), rel=1e-2)
            assert row.std == pytest.approx(ratios.std(), rel=2e-2)


def test_ratios_are_exported_where_they_were_gathered(
    tiny_profile: Profile, tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus
) -> None:
    ratios = token_ratios(tiny_loaded, tiny_corpus)
    without, given = reference(tiny_profile)["sites"], reference(tiny_profile, ratios)["sites"]
    assert all(value is None for row in without for value in row["token_ratios"].values())
    for row in given:
        expected = ratios.get(row["site"])
        assert row["token_ratios"]["mean_ratio"] == (expected.mean if expected else None)


def test_a_token_without_a_median_has_no_ratio() -> None:
    x = torch.zeros(3, 5)
    x[0, 0], x[1], x[2, :3] = 7.0, 2.0, torch.tensor([1.0, 4.0, 3.0])
    ratios, known = ratios_of(x)
    assert known.tolist() == [False, True, True]
    assert ratios[known].tolist() == [1.0, 4.0]
    moments = Moments.of(ratios[:2], known[:2]).with_others(Moments.of(ratios[2:], known[2:])).fetched()
    assert (moments.tokens, moments.highest, moments.mean, moments.std) == (2, 4.0, 2.5, 1.5)


def test_int8_with_one_scale_against_plain_numpy(captured: Captured, tiny_profile: Profile) -> None:
    """Ranges from one split, errors on the other, at every tensor of the residual stream and the final norm."""
    rows = {row["site"]: row["int8"] for row in reference(tiny_profile)["sites"]}
    kinds = {site.name: site.kind for site in tiny_profile.sites}
    splits = [sample.split for sample in tiny_profile.samples]
    assert {name for name, row in rows.items() if row} == {n for n in rows if kinds[n] in ("residual", "final_norm")}
    for name, sweep in rows.items():
        for row in sweep or []:
            calibration, evaluation = (
                np.concatenate([t.double().numpy().ravel() for i, t in captured[name].items() if splits[i] == split])
                for split in ("calibration", "evaluation")
            )
            threshold = np.quantile(np.abs(calibration), row["clip"] or 1.0, method="inverted_cdf")
            assert row["threshold"] == threshold
            codes = np.rint(np.clip(evaluation, -threshold, threshold) / (threshold / 127))
            error = codes * threshold / 127 - evaluation
            assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-3)
            assert row["relative_mae"] == pytest.approx(np.abs(error).sum() / np.abs(evaluation).sum(), rel=1e-3)
            assert row["sqnr_db"] == pytest.approx(10 * np.log10((evaluation**2).sum() / (error**2).sum()), abs=0.01)
            assert row["clip_rate"] == pytest.approx((np.abs(evaluation) > threshold).mean(), abs=1e-9)


def test_subsets_and_shape_are_of_the_papers_components(captured: Captured, tiny_profile: Profile) -> None:
    data = reference(tiny_profile)
    inside = [name for name in captured if COMPONENTS.get({s.name: s.kind for s in tiny_profile.sites}[name])]
    highest = sorted((e[0] for name in inside for e in elements(captured[name])), key=abs, reverse=True)[:5]
    assert [abs(value) for value in data["shape"]["top"]] == [abs(value) for value in highest]
    sizes = [round(share * len(tiny_profile.samples)) for share in SUBSETS]
    assert [row["samples"] for row in data["subsets"]] == sizes
    assert all(0 < row["mean"] <= data["M"]["max_abs"] for row in data["subsets"])


def profile_of(x: torch.Tensor) -> Profile:
    samples = [SampleInfo(id="a", domain="d", split="calibration", tokens=len(x))]
    site = site_info("s", kind="residual", tap="output")
    return Profile(
        provenance=provenance([site], samples), statistics={("s", "calibration"): accumulate(make_samples([x]))}
    )
