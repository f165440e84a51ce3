"""The card's stability section against the profile, and the finding that follows from it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantaudit.card.build import peak_summary, site_row
from quantaudit.card.judge.findings import exceedance
from quantaudit.card.schema import Finding, GlobalPeak, StabilityInfo
from quantaudit.card.sections.stability import exceedance_info, peak_stability, stability_info
from quantaudit.measure.profile import Profile
from quantaudit.policy import load_policy
from quantaudit.provenance import SampleInfo, Split
from quantaudit.stats.site import SiteStatistics
from tests.builders import accumulate, make_samples, provenance, site_info

POLICY = load_policy("default")


def profile_of(values: list[float], *, tokens: int = 4, name: str = "layers.0.mlp.down_proj.input") -> Profile:
    """One site; sample i reaches values[i]; every third sample is an evaluation sample, domains a and b in turn."""
    splits: list[Split] = ["evaluation" if i % 3 == 2 else "calibration" for i in range(len(values))]
    samples = [SampleInfo(id=f"s{i}", domain="ab"[i % 2], split=split, tokens=tokens) for i, split in enumerate(splits)]
    tensors = make_samples([torch.full((tokens, 2), value) for value in values])
    statistics: dict[tuple[str, Split], SiteStatistics] = {}
    for split in ("calibration", "evaluation"):
        members = [sample for sample in tensors if splits[sample[0]] == split]
        if members:
            statistics[name, split] = accumulate(members)
    return Profile(provenance=provenance([site_info(name)], samples), statistics=statistics)


def exceedance_findings(info: StabilityInfo) -> list[Finding]:
    return [Finding.of("QA202", hit) for hit in exceedance(SimpleNamespace(stability=info, policy=POLICY))]


def info_of(profile: Profile) -> StabilityInfo:
    return stability_info(profile, peak_summary([site_row(profile, site) for site in profile.sites]))


def test_every_part_describes_the_site_that_the_peak_names(tiny_profile: Profile) -> None:
    rows = [site_row(tiny_profile, site) for site in tiny_profile.sites]
    peak = peak_summary(rows)
    info = stability_info(tiny_profile, peak)
    assert peak.quantized is not None
    assert info.quantized is not None
    assert (info.quantized.site, info.quantized.amax) == (peak.quantized.site, peak.quantized.amax)
    row = next(row for row in rows if row.name == peak.quantized.site)
    assert {bucket.name: bucket.amax for bucket in info.quantized.by_domain} == row.domains
    assert sum(bucket.samples for bucket in info.quantized.by_length) == len(tiny_profile.samples)
    assert info.exceedance.compared == sum(site.kind == "linear_input" for site in tiny_profile.sites)
    assert info.quantized.subsets == []
    assert "too few" in info.quantized.reading


def test_many_samples_give_subsets_and_a_tail_with_its_reading() -> None:
    values = np.random.default_rng(0).lognormal(3, 0.2, 600).tolist()
    row = info_of(profile_of(values)).overall
    assert row is not None
    assert row.tail is not None
    assert [subset.samples for subset in row.subsets] == [5, 10, 20, 50, 100, 120]
    assert not row.tail.few_samples
    assert row.tail.horizon == 6000
    assert (row.tail.low or 0) < (row.tail.median or 0) < (row.tail.high or 0)
    assert "6,000 new samples" in row.tail.reading
    assert "rough" not in row.tail.reading
    assert "120 of the 600 samples" in row.reading


def test_few_samples_are_flagged_in_words_and_equal_ones_have_no_tail() -> None:
    row = info_of(profile_of(np.random.default_rng(0).lognormal(3, 0.2, 60).tolist())).overall
    assert row is not None
    assert row.tail is not None
    assert row.tail.few_samples
    assert "rough guess" in row.tail.reading
    equal = info_of(profile_of([5.0] * 60)).overall
    assert equal is not None
    assert equal.tail is None


def test_samples_with_nan_are_counted_and_left_out() -> None:
    profile = profile_of([1.0, float("nan"), 2.0, 3.0, 1.0, 2.0])
    row = peak_stability(profile, GlobalPeak(
        site=profile.sites[0].name, kind="linear_input", layer=0, amax=3.0, value=3.0, domain=None, position=None,
        token=None, channel=None,
    ))  # fmt: skip
    assert row is not None
    assert (row.samples, row.left_out, row.amax) == (5, 1, 3.0)


@pytest.mark.parametrize(("highest", "severity"), [(2.0, None), (2.125, "info"), (3.0, "warning")])
def test_evaluation_beyond_calibration_is_a_finding(highest: float, severity: str | None) -> None:
    profile = profile_of([2.0, 1.0, 1.0, 1.0, 2.0, highest])
    info = info_of(profile)
    assert info.exceedance == exceedance_info(profile)
    findings = exceedance_findings(info)
    assert [row.severity for row in findings] == ([severity] if severity else [])
    if findings:
        row = info.exceedance.worst[0]
        assert findings[0].code == "QA202"
        assert findings[0].module == "layers.0.mlp.down_proj"
        assert findings[0].value == highest / 2
        assert (row.samples, row.samples_beyond, row.elements_beyond) == (2, 1, 0.5)
        assert "`layers.0.mlp.down_proj.input`" in findings[0].message
    else:
        assert "At none of 1 " in info.exceedance.reading


def test_one_split_alone_is_no_comparison() -> None:
    info = info_of(profile_of([1.0, 2.0]))
    assert (info.exceedance.compared, info.exceedance.worst) == (0, [])
    assert exceedance_findings(info) == []
