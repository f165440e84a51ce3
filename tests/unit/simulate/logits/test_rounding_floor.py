"""The rounding floor, which prices leave out, is measured on the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, discover
from quantaudit.simulate.logits.rounding_floor import (
    RoundingFloor,
    perturb_ulp,
    rounding_floor,
)
from tests.builders import hooks, random_corpus, tiny_model, weight_bytes
from tests.unit.simulate.reference import run


def test_floors_lie_on_straight_lines_between_the_depths() -> None:
    floor = RoundingFloor(depths=(0, 4, 8), kl=(0.4, 0.2, 0.1))
    assert [floor.at(layer) for layer in (0, 2, 4, 6, 8, 9)] == pytest.approx([0.4, 0.3, 0.2, 0.15, 0.1, 0.1])
    assert RoundingFloor(depths=(0,), kl=(0.0,)).at(7) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_nudge_is_one_representable_step_here_and_there(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 256, generator=generator).to(dtype)
    x[0, :, 0], x[0, 0, 1] = 0, torch.finfo(dtype).max
    y = perturb_ulp(x, generator)
    changed = x != y
    assert 0.0005 < float(changed.float().mean()) < 0.002
    assert bool(y.isfinite().all())
    assert not bool(changed[0, :, 0].any())
    steps = (x.view(torch.int16 if x.element_size() == 2 else torch.int32).long(), y.view_as(x))
    other = steps[1].view(torch.int16 if x.element_size() == 2 else torch.int32).long()
    assert set((steps[0] - other)[changed].abs().tolist()) == {1}


def test_the_floor_is_the_kl_of_two_forwards(
    tiny_loaded: LoadedModel, architecture: Architecture, samples: list[TokenizedSample]
) -> None:
    model = tiny_loaded.model
    before, count = weight_bytes(model), hooks(model)
    floor = rounding_floor(model, architecture.blocks, samples[:2], depths=2, seed=5)
    assert (weight_bytes(model), hooks(model)) == (before, count)
    assert floor.depths == (0, len(architecture.blocks) - 1)
    expected = [0.0, 0.0]
    for sample in sorted(samples[:2], key=lambda s: (-len(s.ids), s.index)):
        for i, depth in enumerate(floor.depths):
            block = model.get_submodule(architecture.blocks[depth])
            seed = int(np.random.SeedSequence([5, sample.index, depth]).generate_state(1)[0])
            generator = torch.Generator().manual_seed(seed)
            p = run(model, sample).double().log_softmax(-1)
            handle = block.register_forward_pre_hook(
                lambda _m, args, drawn=generator: (perturb_ulp(args[0], drawn), *args[1:])
            )
            q = run(model, sample).double().log_softmax(-1)
            handle.remove()
            expected[i] += float((p.exp() * (p - q)).sum())
    tokens = sum(len(s.ids) for s in samples[:2])
    # Differences of float32 normalizers resolve a KL to about 1e-7 nats.
    assert floor.kl == pytest.approx([value / tokens for value in expected], rel=1e-3, abs=1e-7)
    assert floor.kl[0] > 1e-6


def test_in_float32_there_is_hardly_a_floor() -> None:
    wide, narrow = (tiny_model("llama", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    samples = random_corpus([24, 20]).samples
    floors = [rounding_floor(model, discover(model).blocks, samples).kl[0] for model in (wide, narrow)]
    assert floors[0] < 1e-3 * floors[1]
