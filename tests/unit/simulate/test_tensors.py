"""Rows of scales and errors: one for every tensor, scheme and observer that applies, from the right split."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.loading.load import LoadedModel
from quantaudit.quant.errors import tensor_errors
from quantaudit.quant.observers import OBSERVERS, Observed, applies, order_spread, qparams_from
from quantaudit.quant.ranges import model_dtype, quantizable, site_qparams
from quantaudit.quant.schemes import INT8, STATIC_INPUTS
from quantaudit.simulate.tensors import error_rows, scale_rows
from tests.builders import loaded_from

KEYS = {(scheme, o) for scheme, args in STATIC_INPUTS.items() for o in OBSERVERS if applies(o, args)}


def test_every_quantizable_tensor_has_a_row_for_every_scheme_and_observer_that_applies(tiny_profile: Profile) -> None:
    sites = {site.name for site in tiny_profile.sites if site.kind == "linear_input"}
    assert len(sites) == 13
    assert {site.name for site in quantizable(tiny_profile)} == sites
    assert len(KEYS) == 3 * len(OBSERVERS) - 2  # amax / 127 belongs to symmetric INT8 alone
    for rows in (scale_rows(tiny_profile), error_rows(tiny_profile)):
        assert len(rows) == len(sites) * len(KEYS)
        assert {(row.site, row.scheme, row.observer) for row in rows} == {(s, *key) for s in sites for key in KEYS}
        assert all(f"{row.group}.input" == row.site for row in rows)


def test_scales_come_from_the_calibration_split(tiny_profile: Profile) -> None:
    for row in scale_rows(tiny_profile):
        calibration = tiny_profile.split(row.site, "calibration")
        assert calibration is not None
        args, exact = STATIC_INPUTS[row.scheme], calibration.range
        observed = Observed(
            distribution=calibration.distribution,
            exact=exact,
            lows=calibration.extremes.min,
            highs=calibration.extremes.max,
            dtype=torch.bfloat16,
        )
        expected = qparams_from(observed, args, row.observer)
        assert expected is not None
        assert (row.min, row.max) == (expected.min, expected.max)
        assert (row.scale, row.zero_point) == (float(expected.scale), int(expected.zero_point))
        if row.observer == "absolute_maximum":
            assert (row.min, row.max) == exact
        assert row.order_spread == (order_spread(observed, args) if row.observer == "minmax" else None)


def test_errors_are_those_on_the_evaluation_split(tiny_profile: Profile) -> None:
    for row in error_rows(tiny_profile):
        evaluation = tiny_profile.split(row.site, "evaluation")
        args = STATIC_INPUTS[row.scheme]
        qparams = site_qparams(tiny_profile, row.site, args, row.observer)
        assert evaluation is not None
        assert qparams is not None
        expected = tensor_errors(evaluation.distribution, qparams, args)
        for name in ("sqnr_db", "bulk_sqnr_db", "relative_mae", "zeroed_fraction", "effective_levels", "clip_rate"):
            assert getattr(row, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
        assert row.scale == float(qparams.scale)


def test_the_scale_is_in_the_checkpoints_dtype(tiny_profile: Profile) -> None:
    assert model_dtype(tiny_profile) == torch.bfloat16
    qparams = site_qparams(tiny_profile, tiny_profile.sites[1].name, INT8, "absolute_maximum")
    assert qparams is not None
    assert qparams.scale.dtype == torch.bfloat16


def test_a_tensor_with_a_value_that_is_not_finite_has_no_scale(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus
) -> None:
    model = copy.deepcopy(tiny_loaded.model)
    with torch.no_grad():
        model.get_submodule("model.layers.2.mlp.down_proj").weight[0] = float("inf")
    profile = measure(loaded_from(model, tiny_loaded), tiny_corpus)
    scaled = {row.site for row in scale_rows(profile)}
    assert {site.name for site in quantizable(profile)} - scaled == {"lm_head.input"}
    assert {row.site for row in error_rows(profile)} == scaled


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_a_split_that_saw_nothing_has_no_rows(tiny_profile: Profile, split: str) -> None:
    gone = "layers.1.mlp.down_proj.input"
    kept = {key: value for key, value in tiny_profile.statistics.items() if key != (gone, split)}
    profile = Profile(provenance=tiny_profile.provenance, statistics=kept)
    assert gone not in {row.site for row in error_rows(profile)}
    assert (gone in {row.site for row in scale_rows(profile)}) == (split == "evaluation")


def test_float32_errors_are_bounded_by_the_true_extremes(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus
) -> None:
    """The histogram rounds float32; no value may look clipped for that, in the split that gave the range."""
    model = copy.deepcopy(tiny_loaded.model).float()
    profile = measure(loaded_from(model, tiny_loaded), tiny_corpus)
    one = {
        key: value
        for (name, split), value in profile.statistics.items()
        for key in ((name, "calibration"), (name, "evaluation"))
        if split == "calibration"
    }
    same = Profile(provenance=profile.provenance, statistics=one)
    rows = [row for row in error_rows(same) if row.observer == "absolute_maximum" and "asymmetric" not in row.scheme]
    assert len(rows) == 26
    assert {row.clip_rate for row in rows} == {0.0}
    assert np.isfinite([row.sqnr_db for row in rows]).all()
