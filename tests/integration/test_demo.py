"""The real thing, small: the demo checkpoint shows the problem that the tool exists for."""

from __future__ import annotations

import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.tensors import error_rows
from quantaudit.stats.site import summary
from tests.builders import builtin_corpus
from tests.unit.simulate.reference import damage_rows

pytestmark = pytest.mark.checkpoint

MASSIVE = "layers.11.mlp.down_proj"


@pytest.fixture(scope="module")
def corpus(demo_loaded: LoadedModel) -> TokenizedCorpus:
    return builtin_corpus(demo_loaded, samples=6, max_length=48)


@pytest.fixture(scope="module")
def profile(demo_loaded: LoadedModel, corpus: TokenizedCorpus) -> Profile:
    return measure(demo_loaded, corpus)


def test_the_demo_loads_as_bfloat16_from_its_gguf(demo_loaded: LoadedModel) -> None:
    info = demo_loaded.info
    assert (info.dtype, info.model_type, info.layers) == ("bfloat16", "llama", 30)
    assert info.notes == ["GGUF weights dequantized to bfloat16"]
    assert 130e6 < info.parameters < 140e6
    assert len(info.files) == 1
    assert sum("Linear" in module.classes for module in info.modules) == 211


def test_every_linear_is_measured(demo_loaded: LoadedModel, profile: Profile) -> None:
    assert profile.provenance.unmeasured == []
    groups = discover(demo_loaded.model).groups
    assert len(groups) == 121
    assert all(profile.whole(group.site) is not None for group in groups)


def test_the_first_token_is_massive_at_one_projection(profile: Profile) -> None:
    found = profile.whole(f"{MASSIVE}.input")
    assert found is not None
    described = summary(found)
    assert described.amax > 1000
    assert found.peaks.position[0] == 0
    assert abs(float(found.peaks.value[0])) == described.amax
    assert described.median < described.amax / 1000
    assert found.massive > 0


def test_static_int8_zeroes_it_while_its_sqnr_passes(profile: Profile) -> None:
    rows = {(row.site, row.scheme, row.observer): row for row in error_rows(profile)}
    row = rows[f"{MASSIVE}.input", INT8_STATIC.name, "absolute_maximum"]
    assert row.sqnr_db is not None
    assert row.sqnr_db > 20
    assert row.zeroed_fraction is not None
    assert row.zeroed_fraction > 0.99
    assert row.clip_rate == 0


def test_its_damage_is_static_alone(demo_loaded: LoadedModel, corpus: TokenizedCorpus, profile: Profile) -> None:
    """One layer replayed: per-token scales take the damage away, per-tensor scales do not."""
    from quantaudit.quant.ranges import site_qparams

    assert INT8_STATIC.input_activations is not None
    architecture = discover(demo_loaded.model)
    group = next(group for group in architecture.groups if group.name == MASSIVE)
    only = type(architecture)(blocks=architecture.blocks, sites=architecture.sites, groups=(group,))
    found = site_qparams(profile, group.site, INT8_STATIC.input_activations, "absolute_maximum")
    qparams = {INT8_STATIC.name: {MASSIVE: found}}
    with torch.no_grad():
        rows = damage_rows(demo_loaded.model, only, select(corpus.samples, 96), [INT8_STATIC, INT8_DYNAMIC], qparams)
    damage = {row.scheme: row.damage or 0.0 for row in rows}
    assert damage[INT8_STATIC.name] > 10 * damage[INT8_DYNAMIC.name] > 0
