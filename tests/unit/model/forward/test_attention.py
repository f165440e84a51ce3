"""Eager attention lasts as long as its context, in every part of a model, whatever happens inside."""

from __future__ import annotations

import pytest
import torch

from quantaudit.model.forward.attention import eager_attention
from tests.builders import tiny_model
from tests.families import family_model


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3-moe", "gpt2"])
@pytest.mark.parametrize("fails", [False, True])
def test_every_configuration_is_eager_inside_and_as_before_outside(family: str, fails: bool) -> None:
    model = tiny_model("llama") if family == "llama" else family_model(family)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [config._attn_implementation for config in configs]
    assert "sdpa" in before
    try:
        with eager_attention(model):
            assert {config._attn_implementation for config in configs} == {"eager"}
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    assert [config._attn_implementation for config in configs] == before


def test_the_eager_kernel_really_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    ids = torch.arange(20)[None]
    calls: list[int] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: object, **options: object) -> object:
        calls.append(1)
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.no_grad(), eager_attention(model):
        model(ids)
    assert not calls
    with torch.no_grad():
        model(ids)
    assert len(calls) == 3
