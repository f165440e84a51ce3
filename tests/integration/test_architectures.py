"""A dozen kinds of architecture, as `make sweep` examines all: nothing in silence, the peaks of plain hooks, a card."""

from __future__ import annotations

import pytest

from tests.sweep import examine

MEASURED = (
    "modernbert-decoder", "ernie4_5_moe", "mamba", "jamba", "gemma3n_text", "recurrent_gemma", "rwkv", "llama4",
    "minimax_m3_vl", "qwen3_5", "git", "mllama", "zamba", "hunyuan_v1_moe", "deepseek_v4", "blt",
)  # fmt: skip


@pytest.mark.parametrize("model_type", MEASURED)
def test_it_is_measured_whole(model_type: str) -> None:
    outcome, detail = examine(model_type)
    assert outcome == "measured", detail
    assert "prices from gradient" in detail


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba"])
def test_a_linear_that_nothing_calls_leaves_static_scales_conclusive(model_type: str) -> None:
    outcome, detail = examine(model_type)
    assert "never calls it" in detail
    # Obstacles come before what so little text cannot show: there is none.
    assert "INCONCLUSIVE: It rests on 24 evaluation tokens" in detail, (outcome, detail)
    assert detail.count("INCONCLUSIVE") == 1


def test_one_that_needs_images_says_so() -> None:
    outcome, detail = examine("blip-2")
    assert outcome == "refused"
    assert "cannot run without pixel_values" in detail


def test_one_whose_own_code_fails_without_images_says_so() -> None:
    outcome, detail = examine("idefics")
    assert outcome == "refused"
    assert "own forward pass fails: ValueError: Exactly 1 of pixel_values" in detail


def test_one_without_a_vocabulary_is_no_language_model() -> None:
    outcome, detail = examine("pi0")
    assert outcome == "refused"
    assert "is no language model: its configuration has no vocabulary" in detail


def test_one_that_has_no_backward_pass_is_priced_by_damage() -> None:
    outcome, detail = examine("reformer")
    assert outcome == "measured", detail
    assert "prices from damage (no prices from gradients: the backward pass failed" in detail
