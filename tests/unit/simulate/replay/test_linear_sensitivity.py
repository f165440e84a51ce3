"""Prices: against estimates written a second time, against the true KL, and leaving nothing behind."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.model.experts import linearize
from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, Group, discover
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, Scheme, find_scheme
from quantaudit.simulate.patch_forward import checkpointed
from quantaudit.simulate.replay.backward_pass import graph_bytes, record_backward
from quantaudit.simulate.replay.fisher import differentiable, sampled_score_gradients
from quantaudit.simulate.replay.linear_sensitivity import LinearSensitivity, PriceList
from quantaudit.simulate.replay.replay_groups import replay_groups
from tests.builders import hooks, random_corpus, tiny_model, weight_bytes
from tests.families import family_model
from tests.unit.simulate.reference import (
    ALL,
    INPUTS_ONLY,
    NOTHING,
    WEIGHTS_ONLY,
    by_scheme,
    experiment,
    price_groups,
    quantized_copy,
    ranges,
    run,
)

Ranges = dict[str, QParams | None]


def outputs(model: nn.Module, paths: Sequence[str], sample: TokenizedSample) -> dict[str, Tensor]:
    """Output [tokens, out] of every module, by path."""
    by_path: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _m, _a, output, path=path: by_path.__setitem__(path, first_tensor(output)[0].detach().clone())
        )
        for path in paths
    ]
    run(model, sample)
    for handle in handles:
        handle.remove()
    return by_path


def shifted(output: Any, delta: Tensor) -> Any:
    return output + delta if isinstance(output, Tensor) else (output[0] + delta, *output[1:])


def nudged_loss(model: Any, labels: Tensor, sample: TokenizedSample, deltas: Mapping[str, Tensor]) -> Tensor:
    """Negative log-likelihood of labels, with a change added to the output of each named module."""
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _m, _a, output, delta=delta: shifted(output, delta))
        for path, delta in deltas.items()
    ]
    logits = model(input_ids=torch.from_numpy(sample.ids)[None], use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return nn.functional.cross_entropy(logits.float(), labels, reduction="sum")


@pytest.fixture(scope="module")
def exact() -> tuple[Any, Architecture, list[TokenizedSample], Ranges]:
    """A float32 model, so that the references need no allowance for rounding."""
    model = tiny_model("llama", dtype=torch.float32, num_hidden_layers=2)
    corpus = random_corpus([24, 20, 16, 12])
    architecture = discover(model)
    return model, architecture, list(corpus.samples), ranges(model, architecture.groups, corpus.samples)


# Against references --------------------------------------------------------------------------------------------------


def at_linears(
    model: nn.Module, groups: Sequence[Group], samples: Sequence[TokenizedSample], q: Any, **options: Any
) -> PriceList:
    """Prices of all groups as those outside the blocks have them."""
    schemes = options.pop("schemes", ALL)
    nothing = Architecture(blocks=(), sites=(), groups=())
    priced = experiment(model, replace(nothing, groups=tuple(groups)), samples, schemes, q)
    linears = LinearSensitivity(experiment=priced)
    return record_backward(experiment(model, nothing, samples), linears, **options).prices


def drawn(model: nn.Module, sample: TokenizedSample, seed: int) -> Tensor:
    """The labels of the first draw, by inversion."""
    p = run(model, sample).softmax(-1)
    u = torch.rand(len(p), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (p.double().cumsum(-1) <= u).sum(-1)


def price_by_hand(
    model: nn.Module, sample: TokenizedSample, labels: Tensor, paths: Sequence[str], changed: nn.Module
) -> float:
    """½·Σ over tokens of (Σ over modules of g·Δ)², gradients with respect to deltas of what the modules put out."""
    clean, after = (outputs(m, paths, sample) for m in (model, changed))
    deltas = {path: torch.zeros_like(clean[path], requires_grad=True) for path in paths}
    gradients = torch.autograd.grad(nudged_loss(model, labels, sample, deltas), list(deltas.values()))
    directional = sum(
        (gradient.double() * (after[path] - clean[path]).double()).sum(-1)
        for path, gradient in zip(paths, gradients, strict=True)
    )
    return 0.5 * float(torch.as_tensor(directional).square().sum()) / len(sample.ids)


@pytest.mark.parametrize("name", ["llama", "gemma2", "glm4", "falcon"])
def test_prices_are_those_of_gradients_where_a_group_joins_the_residual_stream(name: str) -> None:
    """Changes from a copy quantized for good; at the output of a Linear for what lies outside the blocks."""
    behind = {
        "llama": {"self_attn": "self_attn", "mlp": "mlp"},
        "gemma2": {"self_attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
        "glm4": {"self_attn": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"},
        "falcon": {"self_attention": "self_attention", "mlp": ""},  # which is written into: the block as a whole
    }
    model = family_model(name, num_hidden_layers=2).float() if name != "llama" else tiny_model("llama").float()
    architecture, samples = discover(model), list(random_corpus([24, 9]).samples)
    qparams, sample = ranges(model, architecture.groups, samples), samples[0]
    schemes = [INT8_STATIC, INT8_DYNAMIC]
    prices = price_groups(model, architecture, [sample], schemes, by_scheme(qparams), draws=1, seed=3)
    labels = drawn(model, sample, 3)
    for group in architecture.groups:
        paths: Sequence[str] = group.members
        if group.layer is not None:
            block = architecture.blocks[group.layer]
            child = behind[name][group.members[0].removeprefix(f"{block}.").partition(".")[0]]
            paths = [f"{block}.{child}".removesuffix(".")]
        for scheme in schemes:
            changed = quantized_copy(model, [group], {group.name: scheme}, qparams)
            expected = price_by_hand(model, sample, labels, paths, changed)
            assert prices[group.name, scheme.name] == pytest.approx(expected, rel=2e-3, abs=1e-12), group.name


def test_prices_are_the_same_whether_or_not_damage_is_wanted(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: Ranges
) -> None:
    """A replay that ends at the branch runs what a replay of the whole block runs."""
    for name in ("llama", "gemma3", "olmo2", "qwen3.5-moe", "opt", "bloom", "gpt-oss"):
        model = tiny_loaded.model if name == "llama" else family_model(name)
        linearize(model)
        whole, schemes = discover(model), [INT8_DYNAMIC, WEIGHTS_ONLY]
        what = experiment(model, whole, samples[:2], schemes)
        effects = replay_groups(what, record_backward(what))
        alone = price_groups(model, whole, samples[:2], schemes, {}, draws=1)
        assert all(alone[effect.key] == effect.price for effect in effects if effect.in_block), name
        assert any(effect.price for effect in effects)


def test_at_linears_prices_are_those_of_gradients_taken_one_group_at_a_time(
    exact: tuple[Any, Architecture, list[TokenizedSample], Ranges],
) -> None:
    model, architecture, samples, qparams = exact
    sample = samples[0]
    prices = at_linears(model, architecture.groups, [sample], by_scheme(qparams), seed=3)
    labels = drawn(model, sample, 3)
    for group in architecture.groups:
        for scheme in ALL:
            changed = quantized_copy(model, [group], {group.name: scheme}, qparams)
            expected = price_by_hand(model, sample, labels, group.members, changed)
            assert prices[group.name, scheme.name] == pytest.approx(expected, rel=2e-3, abs=1e-12), group.name


@pytest.mark.parametrize("shared", [0, 2])
def test_where_layers_share_keys_and_values_no_blocks_output_tells_all(shared: int) -> None:
    """The keys and values of the layer that keeps them reach the later ones next to the residual stream."""
    layers = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    model = family_model("gemma4", num_kv_shared_layers=shared, **layers)
    architecture, samples = discover(model), random_corpus([14, 9]).samples
    prices = price_groups(model, architecture, samples, [INT8_DYNAMIC], {}, draws=1)
    at_outputs = at_linears(model, architecture.groups, samples, {}, schemes=[INT8_DYNAMIC])
    assert (prices == at_outputs) is bool(shared)
    assert all(prices.values())


def test_with_many_draws_prices_come_near_the_true_kl(
    exact: tuple[Any, Architecture, list[TokenizedSample], Ranges],
) -> None:
    """Two independent roads to one number: second order from backward passes, and KL of a copy that really changed."""
    model, architecture, samples, qparams = exact
    prices = price_groups(model, architecture, samples, [INT8_DYNAMIC], by_scheme(qparams), draws=60)
    near = 0
    for group in architecture.groups:
        changed = quantized_copy(model, [group], {group.name: INT8_DYNAMIC}, qparams)
        kl = 0.0
        for sample in samples:
            p, q = (run(m, sample).double().log_softmax(-1) for m in (model, changed))
            kl += float((p.exp() * (p - q)).sum())
        kl /= sum(len(sample.ids) for sample in samples)
        price = prices[group.name, INT8_DYNAMIC.name]
        assert price is not None
        assert price == pytest.approx(kl, rel=0.6), group.name
        near += abs(price / kl - 1) < 0.3
    assert near >= 0.75 * len(architecture.groups)


def test_scores_have_the_covariance_of_the_fisher_information() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    gradients = sampled_score_gradients(logits.expand(200_000, 4), torch.Generator().manual_seed(0)).double()
    p = logits.double().softmax(-1)
    assert torch.allclose(gradients.mean(0), torch.zeros(4, dtype=torch.float64), atol=5e-3)
    assert torch.allclose(gradients.T @ gradients / len(gradients), p.diag() - torch.outer(p, p), atol=5e-3)


# Laws ----------------------------------------------------------------------------------------------------------------


def test_what_changes_nothing_costs_nothing(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample]
) -> None:
    prices = price_groups(tiny_loaded.model, architecture, samples[:2], [NOTHING], {})
    assert set(prices.values()) == {0.0}
    assert len(prices) == len(architecture.groups)


def test_schemes_priced_together_cost_what_they_cost_alone(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: Ranges
) -> None:
    def prices(schemes: Sequence[Scheme]) -> PriceList:
        return price_groups(tiny_loaded.model, architecture, samples[:2], schemes, by_scheme(qparams))

    together = prices(ALL)
    for scheme in ALL:
        alone = prices([scheme])
        assert {key: together[key] for key in alone} == alone


def test_members_add_up_inside_the_token_before_they_are_squared(
    exact: tuple[Any, Architecture, list[TokenizedSample], Ranges],
) -> None:
    """√(2·price) is a length: a group's is at most the sum of its members', one by one."""
    model, architecture, samples, qparams = exact
    for group in architecture.groups:
        single = [
            Group(name=f"{group.name}.{i}", projection="p", layer=group.layer, members=(member,))
            for i, member in enumerate(group.members)
        ]
        q = {INPUTS_ONLY.name: {**qparams, **{g.name: qparams[group.name] for g in single}}}
        prices = at_linears(model, [group, *single], samples[:2], q, schemes=[INPUTS_ONLY])
        whole, *parts = (prices[g.name, INPUTS_ONLY.name] or 0.0 for g in [group, *single])
        assert whole**0.5 <= sum(part**0.5 for part in parts) * (1 + 1e-6)
        if len(single) > 1:
            assert whole != pytest.approx(sum(parts), rel=1e-6)


def test_every_scheme_uses_its_own_ranges(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: Ranges
) -> None:
    name = architecture.groups[0].name
    prices = price_groups(
        tiny_loaded.model, architecture, samples[:1], [INT8_STATIC, INPUTS_ONLY], {INT8_STATIC.name: qparams}
    )
    assert prices[name, INT8_STATIC.name] is not None
    assert prices[name, INPUTS_ONLY.name] is None


def test_the_same_seed_gives_the_same_prices(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: Ranges
) -> None:
    def prices(seed: int) -> PriceList:
        return price_groups(tiny_loaded.model, architecture, samples[:2], [INT8_STATIC], by_scheme(qparams), seed=seed)

    assert prices(1) == prices(1)
    assert prices(1) != prices(2)


def test_several_rounds_give_what_one_round_gives(
    tiny_loaded: LoadedModel,
    architecture: Architecture,
    samples: list[TokenizedSample],
    qparams: Ranges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prices() -> PriceList:
        return at_linears(tiny_loaded.model, architecture.groups, samples[:3], by_scheme(qparams))

    whole = prices()
    monkeypatch.setattr("quantaudit.simulate.replay.linear_sensitivity.RECORD_BYTES", 1)
    assert prices() == pytest.approx(whole, rel=1e-12)


def test_slices_of_a_weight_give_what_the_whole_gives(
    exact: tuple[Any, Architecture, list[TokenizedSample], Ranges], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some schemes quantize rows alone, others find one scale for all of them; float32 sums in another order."""
    model, architecture, samples, qparams = exact
    schemes = [find_scheme(name) for name in ("int8_static_per_tensor", "NVFP4A16", "mxfp4")]

    def prices() -> PriceList:
        return at_linears(model, architecture.groups, samples[:3], by_scheme(qparams, schemes), schemes=schemes)

    whole = prices()
    monkeypatch.setattr("quantaudit.simulate.replay.linear_sensitivity.SLICE_BYTES", 1 << 10)
    sliced = prices()
    assert sliced != whole
    assert sliced == pytest.approx(whole, rel=1e-5)


def test_no_logits_are_held_on_the_way_back(samples: list[TokenizedSample]) -> None:
    """Of a large vocabulary they take more than the model."""
    model = tiny_model("llama", dtype=torch.float32)
    held: list[Any] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _m, _a, output: held.append(weakref.ref(output.untyped_storage())))
    alive: list[bool] = []
    block = model.model.layers[0]
    block.register_full_backward_hook(lambda *_: alive.append(held[-1]() is not None))
    record_backward(experiment(model, discover(model), samples[:1]))
    assert alive == [False]


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_blocks_that_run_twice_give_the_same_prices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpointed blocks compute their graph on the way back: nothing else may change, nor be recorded twice."""
    model = tiny_model(name, num_hidden_layers=3)
    architecture, samples = discover(model), random_corpus([24, 9]).samples

    def prices() -> PriceList:
        return price_groups(model, architecture, samples, [INT8_DYNAMIC, WEIGHTS_ONLY], {}, draws=2)

    once = prices()
    runs: list[Sequence[str]] = []

    def watched(model: nn.Module, blocks: Sequence[str]) -> Any:
        runs.append(blocks)
        return checkpointed(model, blocks)

    monkeypatch.setattr("quantaudit.simulate.replay.backward_pass.checkpointed", watched)
    monkeypatch.setattr("quantaudit.simulate.replay.backward_pass.GRAPH_BYTES", 0)
    assert prices() == once
    assert runs == [architecture.blocks] * 2
    assert any(once.values())


@pytest.mark.parametrize(("name", "factor"), [("llama", 2), ("gemma3", 2), ("gpt2", 2), ("mamba2", 5)])
def test_the_bytes_of_a_graph_are_told_about(name: str, factor: float) -> None:
    model = tiny_model("llama", num_hidden_layers=4) if name == "llama" else family_model(name, num_hidden_layers=4)
    (sample, *_), blocks = random_corpus([48, 9]).samples, discover(model).blocks
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            saved[x.data_ptr()] = x.nbytes
        return x

    with differentiable(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(input_ids=torch.from_numpy(sample.ids)[None], use_cache=False)
    assert 1 / factor < sum(saved.values()) / graph_bytes(model, blocks, len(sample.ids)) < factor


def test_the_graph_of_one_block_is_kept_at_a_time(samples: list[TokenizedSample]) -> None:
    """Bytes that autograd holds for a backward pass: those of checkpointed blocks hardly grow with their number."""

    def held(layers: int, *, apart: bool) -> int:
        model = tiny_model("llama", num_hidden_layers=layers)
        saved = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal saved
            saved += 0 if isinstance(x, nn.Parameter) else x.nbytes
            return x

        with (
            differentiable(model),
            checkpointed(model, discover(model).blocks if apart else ()),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        ):
            model(input_ids=torch.from_numpy(samples[0].ids)[None], use_cache=False)
        return saved

    assert held(6, apart=False) - held(2, apart=False) > 20 * (held(6, apart=True) - held(2, apart=True))


def test_broken_weights_have_no_price(samples: list[TokenizedSample]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    prices = price_groups(model, discover(model), samples[:1], [WEIGHTS_ONLY], {})
    assert set(prices.values()) == {None}


@pytest.mark.parametrize("name", ["gemma2", "qwen3", "phi3"])
def test_other_families_are_priced(name: str) -> None:
    model = tiny_model(name, num_hidden_layers=1)
    prices = price_groups(model, discover(model), random_corpus([9, 7]).samples, [INT8_DYNAMIC], {})
    assert all(price is not None and price > 0 for price in prices.values())


def test_weights_that_lie_on_their_side_are_priced_as_linears_are() -> None:
    config = GPT2Config(n_layer=1, n_embd=32, n_head=4, vocab_size=320, n_positions=64, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    weight_out_in = GPT2LMHeadModel(config).eval()
    weight_out_in.load_state_dict(model.state_dict())
    for path, module in list(weight_out_in.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(*module.weight.shape)
            linear.weight, linear.bias = nn.Parameter(module.weight.T.contiguous()), module.bias
            weight_out_in.set_submodule(path, linear)
    samples = random_corpus([9, 7]).samples
    prices, expected = (
        price_groups(one, discover(one), samples, [INT8_DYNAMIC, WEIGHTS_ONLY], {}) for one in (model, weight_out_in)
    )
    assert len(prices) == 2 * 5
    assert prices == {key: pytest.approx(price, rel=1e-3) for key, price in expected.items()}
    assert all(price is not None and price > 0 for price in prices.values())


# Housekeeping --------------------------------------------------------------------------------------------------------


def state(model: nn.Module) -> tuple[Any, ...]:
    return (
        weight_bytes(model),
        hooks(model),
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        [module.training for module in model.modules()],
    )


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(samples: list[TokenizedSample], fails: bool) -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    model.model.layers[1].train()
    model.lm_head.weight.requires_grad_(False)
    before = state(model)

    def progress(amount: int = 1) -> None:
        if fails:
            raise RuntimeError("in the middle")

    try:
        price_groups(model, discover(model), samples[:2], [INT8_DYNAMIC], {}, progress=progress)
    except MeasurementError as error:
        if not fails or "in the middle" not in str(error):
            raise
    assert state(model) == before


def test_an_error_inside_the_forward_pass_leaves_no_hook(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample]
) -> None:
    model = tiny_loaded.model
    before = hooks(model)
    broken = Group(name="g", projection="g", layer=0, members=("no.such.module",))
    what = experiment(model, architecture, samples[:1], [INT8_DYNAMIC])
    linears = LinearSensitivity(experiment=what.only([*architecture.groups, broken]))
    with pytest.raises(AttributeError):
        record_backward(what, linears)
    assert hooks(model) == before
