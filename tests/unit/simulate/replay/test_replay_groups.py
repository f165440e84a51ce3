"""Block damage equals a comparison of two whole forwards, written out here, and leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from torch import nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, discover
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import FP8_STATIC, INT8_DYNAMIC, INT8_STATIC, MXFP4
from quantaudit.simulate.quantized.plan import plan_weights
from quantaudit.simulate.replay import replay_groups as block
from quantaudit.simulate.replay.recorded_calls import record_calls
from quantaudit.simulate.replay.replay_groups import block_damage, fisher_kl, steps
from tests.builders import hooks, random_corpus, tiny_model, weight_bytes
from tests.unit.simulate.reference import (
    ALL,
    INPUTS_ONLY,
    NOTHING,
    WEIGHTS_ONLY,
    by_scheme,
    damage_rows,
    experiment,
    quantized_copy,
    ranges,
    run,
)

QParamsByGroup = dict[str, QParams | None]

# The formula ---------------------------------------------------------------------------------------------------------


def by_hand(clean: torch.Tensor, changed: torch.Tensor) -> np.ndarray:
    """‖Δh_t‖² / ‖h_t‖² of every token, in float64."""
    h, other = clean.double().numpy(), changed.double().numpy()
    return ((other - h) ** 2).sum(-1) / (h**2).sum(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_damage_is_the_sum_over_tokens_of_the_relative_squared_change(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(2, 7, 64, generator=generator).to(dtype)
    changed = (clean + 0.1 * torch.randn(2, 7, 64, generator=generator).to(dtype)).to(dtype)
    damage = block_damage(clean, changed)
    assert damage.dtype == torch.float64
    assert float(damage) == pytest.approx(by_hand(clean, changed).sum(), rel=1e-5)


def test_one_massive_token_cannot_hide_the_rest() -> None:
    clean = torch.ones(1, 3, 4)
    clean[0, 0] = 1e6
    changed = clean.clone()
    changed[0, 1:] *= 2
    assert float(block_damage(clean, changed)) == pytest.approx(2.0)


def test_no_change_is_no_damage_even_where_nothing_was() -> None:
    clean = torch.randn(1, 5, 8)
    clean[0, 2] = 0
    assert float(block_damage(clean, clean.clone())) == 0.0


def test_a_non_finite_change_is_non_finite_damage() -> None:
    clean, changed = torch.ones(1, 2, 4), torch.ones(1, 2, 4)
    changed[0, 0, 0] = float("nan")
    assert not torch.isfinite(block_damage(clean, changed))


def test_a_price_is_half_the_squared_product_token_by_token() -> None:
    """In float64 by hand, for outputs with and without residual streams inside them."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 7, 64), (2, 7, 3, 64), (14, 64)):
        gradients, clean, changed = (torch.randn(shape, generator=generator) for _ in range(3))
        by_token = (gradients.double() * (changed.double() - clean.double())).numpy().reshape(14, -1).sum(-1)
        price = fisher_kl(gradients, clean, changed).sum()
        assert price.dtype == torch.float64
        assert float(price) == pytest.approx(0.5 * (by_token**2).sum(), rel=1e-5)


# Against whole forwards ----------------------------------------------------------------------------------------------


def block_outputs(model: nn.Module, path: str, samples: list[TokenizedSample]) -> list[torch.Tensor]:
    """Output of one decoder layer for every sample, from forwards of the whole model."""
    outputs: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: object, output: object) -> None:
        outputs.append((output if isinstance(output, torch.Tensor) else output[0]).clone())

    handle = model.get_submodule(path).register_forward_hook(keep)
    for sample in samples:
        run(model, sample)
    handle.remove()
    return outputs


def two_forwards(
    model: nn.Module, architecture: Architecture, samples: list[TokenizedSample], group: str, scheme: object, q: object
) -> float:
    """Mean damage of one group under one scheme: the clean model's forward against a quantized copy's."""
    layer = next(g.layer for g in architecture.groups if g.name == group)
    assert layer is not None
    path = architecture.blocks[layer]
    changed = quantized_copy(model, architecture.groups, {group: scheme}, q)
    pairs = zip(block_outputs(model, path, samples), block_outputs(changed, path, samples), strict=True)
    return float(np.concatenate([by_hand(a, b).ravel() for a, b in pairs]).mean())


def compare(model: nn.Module, architecture: Architecture, samples: list[TokenizedSample], q: QParamsByGroup) -> None:
    """Every group of the first and last layer, under every scheme."""
    rows = damage_rows(model, architecture, samples, ALL, by_scheme(q))
    schemes = {scheme.name: scheme for scheme in ALL}
    assert len(rows) == len(architecture.groups) * len(ALL)
    for row in rows:
        if row.layer not in (0, len(architecture.blocks) - 1):
            continue
        scheme = schemes[row.scheme]
        expected = two_forwards(model, architecture, samples, row.group, scheme, q)
        assert row.damage == pytest.approx(expected, rel=1e-4, abs=1e-12), (row.group, row.scheme)
        if scheme.weights is None:
            assert row.damage_weights_only is None
        else:
            only = two_forwards(model, architecture, samples, row.group, WEIGHTS_ONLY, q)
            assert row.damage_weights_only == pytest.approx(only, rel=1e-4), (row.group, row.scheme)


def test_damage_is_that_of_two_forwards_of_the_whole_model(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: QParamsByGroup
) -> None:
    compare(tiny_loaded.model, architecture, samples[:3], qparams)


@pytest.mark.parametrize("name", ["gemma2", "phi3"])
def test_damage_is_that_of_two_forwards_in_other_families(name: str) -> None:
    model = tiny_model(name, num_hidden_layers=2)
    corpus = random_corpus([24, 18, 11, 7])
    architecture = discover(model)
    q = ranges(model, architecture.groups, corpus.samples[2:])
    compare(model, architecture, list(corpus.samples[:2]), q)


def test_a_coarser_scale_does_more_damage(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: QParamsByGroup
) -> None:
    coarse = {name: replace(q, scale=q.scale * 8) for name, q in qparams.items() if q is not None}
    fine, rough = (
        [
            row.damage
            for row in damage_rows(tiny_loaded.model, architecture, samples, [INPUTS_ONLY], by_scheme(q))
            if row.damage
        ]
        for q in (qparams, coarse)
    )
    assert len(fine) == 12
    assert all(b > 4 * a for a, b in zip(fine, rough, strict=True))


# Nothing and null ----------------------------------------------------------------------------------------------------


def test_a_scheme_that_changes_nothing_does_no_damage(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample]
) -> None:
    rows = damage_rows(tiny_loaded.model, architecture, samples, [NOTHING], {})
    assert {row.damage for row in rows if row.layer is not None} == {0.0}


def test_weights_that_lie_on_their_grid_do_no_damage(samples: list[TokenizedSample]) -> None:
    """In float32 with scales that are powers of two, weight quantization is the identity."""
    model = tiny_model("llama", dtype=torch.float32, num_hidden_layers=1)
    architecture = discover(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for group in architecture.groups:
            for member in group.members:
                weight = model.get_submodule(member).weight
                weight.copy_(torch.randint(-120, 120, weight.shape, generator=generator) / 1024)
                weight[:, 0] = 127.5 / 1024  # amax: it rounds to a neighbour, so it must not meet an input
    with torch.no_grad():
        for norm in ("input_layernorm", "post_attention_layernorm"):
            model.model.layers[0].get_submodule(norm).weight[0] = 0
    rows = damage_rows(model, architecture, samples[:2], [WEIGHTS_ONLY], {})
    damages = {row.group: row.damage for row in rows}
    assert damages["layers.0.self_attn.qkv_proj"] == 0.0
    assert damages["layers.0.mlp.gate_up_proj"] == 0.0
    assert damages["layers.0.mlp.down_proj"] != 0.0


def test_a_group_without_finite_range_and_linears_outside_the_blocks_are_null(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: QParamsByGroup
) -> None:
    name = "layers.1.mlp.down_proj"
    rows = damage_rows(
        tiny_loaded.model, architecture, samples[:1], [INT8_STATIC, INT8_DYNAMIC], by_scheme({**qparams, name: None})
    )
    null = {(row.group, row.scheme) for row in rows if row.damage is None}
    assert null == {(name, INT8_STATIC.name), ("lm_head", INT8_STATIC.name), ("lm_head", INT8_DYNAMIC.name)}
    assert all(row.price is None for row in rows)


def test_a_model_that_is_broken_already_has_null_damage(samples: list[TokenizedSample]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    rows = damage_rows(model, discover(model), samples[:1], [INT8_DYNAMIC], {})
    assert {row.damage for row in rows} == {None}


# Housekeeping --------------------------------------------------------------------------------------------------------


def test_progress_is_called_as_often_as_announced(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: QParamsByGroup
) -> None:
    for schemes in ([INT8_STATIC], [INT8_STATIC, INT8_DYNAMIC], list(ALL)):
        calls: list[int] = []
        damage_rows(
            tiny_loaded.model,
            architecture,
            samples[:1],
            schemes,
            by_scheme(qparams),
            lambda amount=1, calls=calls: calls.append(amount),
        )
        what = experiment(tiny_loaded.model, architecture, samples[:1], schemes)
        assert sum(calls) == steps(what)


def test_the_model_is_left_bit_for_bit_as_it_was(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: QParamsByGroup
) -> None:
    before, count = weight_bytes(tiny_loaded.model), hooks(tiny_loaded.model)
    damage_rows(tiny_loaded.model, architecture, samples[:1], ALL, by_scheme(qparams))
    assert weight_bytes(tiny_loaded.model) == before
    assert hooks(tiny_loaded.model) == count


@pytest.mark.parametrize("after", [1, 4])
def test_the_model_is_left_as_it_was_after_an_error_within_a_replay(
    tiny_loaded: LoadedModel,
    architecture: Architecture,
    samples: list[TokenizedSample],
    qparams: QParamsByGroup,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    model = tiny_loaded.model
    before, count = weight_bytes(model), hooks(model)
    within: list[bool] = []

    def fail(clean: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        within.append(weight_bytes(model) != before)
        if len(within) == after:
            raise RuntimeError("in the middle")
        return block_damage(clean, changed)

    monkeypatch.setattr(block, "block_damage", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        damage_rows(model, architecture, samples[:1], [INT8_STATIC], by_scheme(qparams))
    assert within[-1]  # it did happen while weights were exchanged
    assert weight_bytes(model) == before
    assert hooks(model) == count


def test_recording_calls_leaves_no_hooks_and_replays_bit_for_bit(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample]
) -> None:
    model = tiny_loaded.model
    count = hooks(model)
    ordered = sorted(samples, key=lambda sample: (-len(sample.ids), sample.index))
    calls = record_calls(model, architecture.blocks, samples)
    assert hooks(model) == count
    for path in architecture.blocks:
        assert len(calls[path]) == len(samples)
        for call, expected in zip(calls[path], block_outputs(model, path, ordered), strict=True):
            assert call.output_gradients == {}
            with torch.no_grad():
                output = model.get_submodule(path)(*call.args, **call.kwargs)
            assert torch.equal(output if isinstance(output, torch.Tensor) else output[0], expected)


def test_every_static_scheme_uses_its_own_ranges(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample], qparams: QParamsByGroup
) -> None:
    coarse = {name: replace(q, scale=q.scale * 8) for name, q in qparams.items() if q is not None}
    mixed = {INT8_STATIC.name: qparams, INPUTS_ONLY.name: coarse}
    together = damage_rows(tiny_loaded.model, architecture, samples[:1], [INT8_STATIC, INPUTS_ONLY], mixed)
    for scheme in (INT8_STATIC, INPUTS_ONLY):
        alone = damage_rows(tiny_loaded.model, architecture, samples[:1], [scheme], {scheme.name: mixed[scheme.name]})
        assert [row.damage for row in together if row.scheme == scheme.name] == [row.damage for row in alone]


def test_weights_of_a_group_are_in_memory_under_one_format_at_a_time(
    tiny_loaded: LoadedModel,
    architecture: Architecture,
    samples: list[TokenizedSample],
    qparams: QParamsByGroup,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All experts of a layer are one group: five formats of it would be five times a block."""
    made: list[ref[torch.Tensor]] = []

    def counted(*arguments: Any) -> dict[str, torch.Tensor]:
        assert not [weight for weight in made if weight() is not None]
        weights = plan_weights(*arguments)
        made.extend(map(ref, weights.values()))
        return weights

    monkeypatch.setattr(block, "plan_weights", counted)
    formats = [INT8_STATIC, FP8_STATIC, INT8_DYNAMIC, MXFP4]
    damage_rows(tiny_loaded.model, architecture, samples[:1], formats, by_scheme(qparams))
    assert len(made) == 3 * sum(len(group.members) for group in architecture.groups if group.layer is not None)
