"""Products in float32 on whole models: every family, and the demo, whose logits are native ones but for roundings."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.measure.run import measure
from quantaudit.model.experts import linearize
from quantaudit.model.forward.arithmetic import choose_arithmetic, computed_in
from quantaudit.model.forward.float32_products import Float32Products
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.provenance import Arithmetic
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.logits.rounding_floor import rounding_floor
from quantaudit.simulate.logits.score_plans import score_checkpoint
from quantaudit.simulate.quantized.plan import Plan
from tests.builders import builtin_corpus, hooks, loaded_from, random_corpus, weight_bytes
from tests.families import family_model

ARITHMETIC: tuple[Arithmetic, ...] = ("native", "float32")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the kernels that computed in float32."""
    ran: set[str] = set()
    run = Float32Products._run

    def watched(self: Float32Products, name: str, keys: object, *args: object, **named: object) -> object:
        ran.add(name)
        return run(self, name, keys, *args, **named)

    monkeypatch.setattr(Float32Products, "_run", watched)
    return ran


@pytest.mark.parametrize(
    ("family", "kernels"),
    [
        ("qwen3", {"mm", "bmm"}),
        ("gemma3", {"mm", "bmm"}),
        ("qwen3-moe", {"mm", "bmm"}),
        ("gpt-oss", {"addmm"}),
        ("gpt2", {"addmm"}),
        ("mamba2", {"mm", "convolution"}),
        ("qwen3.5", {"mm", "convolution"}),
    ],
)
def test_every_family_is_measured_as_natively(
    family: str, kernels: set[str], products: set[str], tiny_loaded: LoadedModel
) -> None:
    model, corpus = family_model(family), random_corpus([40, 33, 29, 20])
    linearize(model)
    model.set_attn_implementation("eager")
    before, hooked = weight_bytes(model), hooks(model)
    found = {}
    for arithmetic in ARITHMETIC:
        with computed_in(arithmetic, model):
            found[arithmetic] = measure(loaded_from(model, tiny_loaded), corpus)
    assert kernels <= products
    assert weight_bytes(model) == before
    assert hooks(model) == hooked
    native, emulated = found["native"], found["float32"]
    assert emulated.provenance.environment.arithmetic == "float32"
    assert emulated.statistics.keys() == native.statistics.keys()
    assert emulated.provenance.unmeasured == native.provenance.unmeasured
    first = discover(model).blocks[0]
    for (site, split), statistics in native.statistics.items():
        if site.startswith(first) and "experts" not in site:
            other = emulated.statistics[site, split]
            assert other.distribution.absolute_maximum == pytest.approx(
                statistics.distribution.absolute_maximum, rel=0.05
            )


def demo_samples(loaded: LoadedModel) -> tuple[TokenizedCorpus, list[TokenizedSample]]:
    corpus = builtin_corpus(loaded, samples=12, max_length=64)
    return corpus, select(corpus.samples, 256)


def in_float32(call: Callable[..., object], model: torch.nn.Module) -> Callable[..., object]:
    """A method of the model that runs under products in float32."""

    def run(*args: object, **named: object) -> object:
        with computed_in("float32", model):
            return call(*args, **named)

    return run


@pytest.mark.checkpoint
def test_the_demo_differs_from_itself_by_the_rounding_floor_at_most(demo_loaded: LoadedModel) -> None:
    _, samples = demo_samples(demo_loaded)
    model, other = demo_loaded.model, copy.copy(demo_loaded.model)
    other.forward = in_float32(model.forward, model)
    nothing = Plan(name="float32", title="products in float32", schemes={}, qparams={}, groups=0)
    kl = score_checkpoint(model, other, samples, nothing).kl
    # The other arithmetic is one more of the least changes, of which a floor draws one: one of several is as large.
    # The faster of the two draws the floors.
    blocks = discover(model).blocks
    with computed_in(choose_arithmetic("auto", model), model):
        floors = [rounding_floor(model, blocks, samples, depths=1, seed=seed).at(0) for seed in range(8)]
    assert kl is not None
    assert 0 < kl <= max(floors)
