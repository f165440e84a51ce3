"""Tensors that have not one row a token: understood by their shape, or set aside and listed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantaudit.measure.collector import by_token
from quantaudit.measure.run import measure
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.model.loading.load import LoadedModel
from tests.builders import loaded_from, random_corpus, tiny_model
from tests.families import family_model

SHAPE = (2, 3)


@pytest.mark.parametrize("axes", [(2, 3), (2, 3, 5), (5, 2, 3), (2, 3, 4, 5), (4, 5, 2, 3)])
def test_rows_of_a_token_come_together(axes: tuple[int, ...]) -> None:
    """Every value says which token it is of."""
    before = len(axes) - 2 if axes[-2:] == SHAPE else 0
    after = len(axes) - 2 - before
    x = torch.arange(6).reshape(*[1] * before, *SHAPE, *[1] * after).expand(axes)[..., None].expand(*axes, 7)
    streams = by_token(x, SHAPE)
    assert len(streams) == int(np.prod(axes)) // 6
    assert all(torch.equal(rows, torch.arange(6)[:, None].expand(6, 7)) for rows in streams)


def test_streams_side_by_side_are_measured(tiny_loaded: LoadedModel) -> None:
    model = tiny_model("llama")
    layer = model.model.layers[1]
    layer.register_forward_hook(lambda _m, _a, out: torch.stack([out, 2 * out, -3 * out]))
    model.model.norm.register_forward_pre_hook(lambda _m, args: (args[0].mean(0),) if args[0].ndim == 4 else None)
    model.model.layers[2].register_forward_pre_hook(lambda _m, args: (args[0][0], *args[1:]))
    corpus = random_corpus([9, 7, 5])
    profile = measure(loaded_from(model, tiny_loaded), corpus, batch=BatchLimit(2))
    one, three = profile.whole("layers.1.mlp.output"), profile.whole("layers.1.output")
    assert one is not None
    assert three is not None
    assert three.tokens == 3 * one.tokens
    assert (three.peaks.position < [len(corpus.samples[i].ids) for i in three.peaks.sample]).all()


def test_a_tensor_of_other_rows_is_listed_and_ends_nothing(tiny_loaded: LoadedModel) -> None:
    model = tiny_model("llama")
    up = model.model.layers[1].mlp.up_proj
    # Twice the rows at this one tensor, before it is observed, and half of them after.
    up.register_forward_pre_hook(lambda _m, args: (torch.cat([args[0], args[0]], dim=1),))
    up.register_forward_hook(lambda _m, args, out: out[:, : out.shape[1] // 2])
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _m, args: (torch.cat([args[0], args[0][:, :1]], dim=1),)
    )
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _m, args, out: out[:, :-1])
    profile = measure(loaded_from(model, tiny_loaded), random_corpus([9, 7]))
    listed = {row.module: row for row in profile.provenance.unmeasured}
    assert listed["model.layers.1.mlp.down_proj"].weights
    assert "rows are not the tokens'" in listed["model.layers.1.mlp.down_proj"].reason
    assert profile.whole("layers.1.mlp.down_proj.input") is None
    assert profile.whole("layers.2.mlp.down_proj.input") is not None


def test_an_expert_whose_rows_are_not_its_layers_is_listed(tiny_loaded: LoadedModel) -> None:
    model = family_model("ling")
    expert = model.model.layers[0].mlp.experts[1]
    expert.register_forward_pre_hook(lambda _m, args: (args[0] + 1,), prepend=True)
    model.model.layers[0].mlp.experts[1].gate_proj.weight.data.mul_(1.0)
    profile = measure(loaded_from(model, tiny_loaded), random_corpus([40, 33, 33, 29]))
    reasons = {row.module: row.reason for row in profile.provenance.unmeasured if row.weights}
    assert "not its layer's tokens" in reasons["model.layers.0.mlp.experts.1.gate_proj"]
    assert profile.whole("layers.1.mlp.experts.down_proj.input") is not None
