"""Scales of tokens and of channels tell a massive token from an outlier channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import INT8_DYNAMIC
from quantaudit.simulate.experiment import GroupOptions
from quantaudit.simulate.granularity import InputErrors, cause
from quantaudit.simulate.run import simulate
from tests.unit.simulate.reference import run


def errors(x: torch.Tensor) -> dict[str, float]:
    """Of a tensor that is calibrated on itself."""
    amax = float(x.abs().max())
    zero = torch.zeros(1, dtype=torch.int8)
    sums = InputErrors(
        per_tensor_range=QParams(min=-amax, max=amax, scale=torch.tensor([amax / 127.5]), zero_point=zero),
        channel_amax=x.abs().amax(0),
    )
    sums.add(0, x[:10])
    sums.add(1, x[10:])
    return {name: total / sums.tokens for name, total in sums.sums.items()}


def direct(x: np.ndarray, scale: np.ndarray) -> float:
    """In float64, from the written formula."""
    restored = np.clip(np.rint(x / scale), -128, 127) * scale
    return float((((restored - x) ** 2).sum(-1) / (x**2).sum(-1)).mean())


@pytest.mark.parametrize("plant", ["outlier channel", "massive token", "neither"])
def test_planted_causes_are_found(plant: str) -> None:
    x = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    if plant == "outlier channel":
        x[:, 5] += 300  # large for every token
    elif plant == "massive token":
        x[7] *= 300
    result = errors(x)
    wide = x.double().numpy()
    assert result["per_tensor"] == pytest.approx(direct(wide, np.abs(wide).max() / 127.5), rel=1e-3)
    assert result["per_token"] == pytest.approx(direct(wide, np.abs(wide).max(1, keepdims=True) / 127.5), rel=1e-3)
    assert result["per_channel"] == pytest.approx(direct(wide, np.abs(wide).max(0) / 127.5), rel=1e-3)
    assert cause(**result) == plant


def test_causes_by_their_numbers() -> None:
    assert cause(1.0, 0.3, 0.4) == "neither"
    assert cause(1.0, 0.2, 0.1) == "either"
    assert cause(1.0, 0.9, 0.1) == "outlier channel"
    assert cause(1.0, 0.1, 0.9) == "massive token"
    assert cause(0.0, 0.0, 0.0) == "neither"


def test_rows_are_those_of_the_evaluation_tokens(
    tiny_loaded: LoadedModel,
    architecture: Architecture,
    tiny_profile: Profile,
    tiny_corpus: TokenizedCorpus,
    samples: list[TokenizedSample],
) -> None:
    simulation = simulate(
        tiny_loaded,
        tiny_profile,
        tiny_corpus.samples,
        [INT8_DYNAMIC],
        evaluation_tokens=4096,
        groups=GroupOptions(score="damage"),
    )
    inside = [group for group in architecture.groups if group.layer is not None]
    assert [row.group for row in simulation.granularity] == [group.name for group in inside]
    group = next(group for group in inside if group.name == "layers.1.mlp.down_proj")
    inputs: list[torch.Tensor] = []
    handle = tiny_loaded.model.get_submodule(group.members[0]).register_forward_pre_hook(
        lambda _module, args: inputs.append(args[0][0])
    )
    for sample in samples:
        run(tiny_loaded.model, sample)
    handle.remove()
    x = torch.cat(inputs).double().numpy()
    row = next(row for row in simulation.granularity if row.group == group.name)
    # The simulation divides in bfloat16, which moves single codes.
    assert row.per_token == pytest.approx(direct(x, np.abs(x).max(1, keepdims=True) / 127.5), rel=0.25)
    assert all(row.per_token is not None and row.per_token > 0 for row in simulation.granularity)
