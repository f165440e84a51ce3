"""Inside hooks the host never waits for the device: with the kernel for accelerators, run here on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quantaudit.common.choices import Experts
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure import collector as gather
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.experts import linearize
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.model.loading.load import LoadedModel
from quantaudit.pipeline.passes import measure_inputs
from quantaudit.pipeline.prepare import prepare
from quantaudit.settings import Settings
from quantaudit.stats.kernels.device import DeviceRecorder
from tests.builders import differences, loaded_from, random_corpus
from tests.families import family_model

WAITING = ("_local_scalar_dense", "nonzero", "bincount", "unique", "masked_select", "equal", "repeat_interleave")
"""Operations whose result, or its size, the host must know; `nonzero_static` is none of them."""


class Waits(TorchDispatchMode):
    """Notes every operation that would wait, and those that are run inside hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.operations = 0
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside:
            self.operations += 1
            name = func.overloadpacket.__name__.lstrip("_")
            masks = func is torch.ops.aten.index.Tensor and any(
                i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
            )
            if masks or any(name == wait.lstrip("_") or name.startswith("unique") for wait in WAITING):
                self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Every hook that is registered while this lasts is watched; a tensor that is fetched counts as well."""
    waits = Waits()

    def inside(hook: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            waits.inside += 1
            try:
                return hook(*args, **kwargs)
            finally:
                waits.inside -= 1

        return run

    for name in ("register_forward_hook", "register_forward_pre_hook"):
        register = getattr(nn.Module, name)
        monkeypatch.setattr(
            nn.Module, name, lambda self, hook, register=register, **k: register(self, inside(hook), **k)
        )
    for name in ("cpu", "numpy", "tolist", "item", "__bool__", "__int__", "__float__", "__index__"):
        before = getattr(Tensor, name)

        def fetch(self: Tensor, *args: Any, name: str = name, before: Any = before, **kwargs: Any) -> Any:
            if waits.inside:
                waits.found.append(name)
            return before(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, fetch)
    monkeypatch.setattr(gather, "recorder_for", lambda device: DeviceRecorder())
    with waits:
        yield waits


def same(a: Profile, b: Profile) -> bool:
    return a.statistics.keys() == b.statistics.keys() and not any(
        differences(a.statistics[key], b.statistics[key]) for key in a.statistics
    )


def test_the_count_notices_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2)
    with watched(monkeypatch) as waits:
        layer.register_forward_pre_hook(lambda _m, args: print(args[0].max().item()))
        layer.register_forward_hook(lambda _m, _a, out: out[out > 0].nonzero() is None)
        layer(torch.ones(1, 2))
    assert len(waits.found) >= 3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_none_in_a_dense_model(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = measure(tiny_loaded, tiny_corpus, batch=BatchLimit(batch_size))
    with watched(monkeypatch) as waits:
        actual = measure(tiny_loaded, tiny_corpus, batch=BatchLimit(batch_size))
    assert waits.operations > 1000
    assert waits.found == []
    assert same(actual, host)


@pytest.mark.parametrize(
    ("family", "experts"),
    [("qwen3-moe", "routed"), ("qwen3-moe", "all"), ("llama4", "routed"), ("llama4", "all"), ("ling", "routed")],
)
def test_none_in_a_mixture_of_experts(
    tiny_loaded: LoadedModel, family: str, experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family_model(family)
    linearize(model)
    loaded, corpus = loaded_from(model, tiny_loaded), random_corpus([30, 21, 13, 8, 5, 3])
    host = measure(loaded, corpus, batch=BatchLimit(2), experts=experts)
    with watched(monkeypatch) as waits:
        actual = measure(loaded, corpus, batch=BatchLimit(2), experts=experts)
    assert waits.operations > 1000
    assert waits.found == []
    assert same(actual, host)


@pytest.mark.parametrize("family", ["qwen", "gemma"])
def test_none_in_a_vision_model(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.vision import SAVE, save_corpus

    corpus = save_corpus(tmp_path / "pictures")
    subject = prepare(Settings.of(model=str(SAVE[family](tmp_path / family)), corpus=str(corpus), device="cpu"))
    host = measure_inputs(subject)
    with watched(monkeypatch) as waits:
        actual = measure_inputs(subject)
    assert waits.operations > 1000
    assert waits.found == []
    assert same(actual, host)
