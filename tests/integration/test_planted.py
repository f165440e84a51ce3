"""Planted failures: each one change to a control that passes, each caught by its own finding, none ever READY.

Everything runs through `audit`, from a checkpoint folder to the card's verdict. A change to weights, to the tokenizer
or to the text is made in their files; a change to the model's code (which remote code could bring) after loading.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from quantaudit.card.schema import Card, Finding
from quantaudit.model.loading.load import LoadedModel
from quantaudit.pipeline import prepare as pipeline
from quantaudit.pipeline.audit import audit
from quantaudit.quant.schemes import INT8_DYNAMIC
from quantaudit.settings import Settings
from tests.learned import (
    PAD,
    RARE,
    SPECIAL,
    VOCABULARY,
    WORDS,
    corpus_rows,
    learned_checkpoint,
    word_tokenizer,
    write_corpus,
)

SERIOUS = {"QA101", "QA102", "QA104", "QA106"}


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned_checkpoint(tmp_path_factory.mktemp("learned") / "dense", "dense")


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned_checkpoint(tmp_path_factory.mktemp("learned") / "moe", "moe")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "planted"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl", corpus_rows())


def card_of(model: Path, text: Path) -> Card:
    return audit(Settings.of(model=str(model), corpus=str(text), evaluation_tokens=512, device="cpu")).card


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def change_code(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let every model be changed as soon as it is loaded."""
    load = pipeline.load_model

    def changed(*args: Any, **kwargs: Any) -> LoadedModel:
        loaded = load(*args, **kwargs)
        change(loaded.model)
        return loaded

    monkeypatch.setattr(pipeline, "load_model", changed)


def serious(card: Card) -> dict[str, Finding]:
    """By code, those that say that the measurement or the model is not sound."""
    found = [finding for finding in card.findings if finding.code in SERIOUS]
    assert len({finding.code for finding in found}) == len(found)
    return {finding.code: finding for finding in found}


def statuses(card: Card) -> set[str]:
    assert len(card.verdict.schemes) >= 2
    return {scheme.status for scheme in card.verdict.schemes}


# The controls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_control_is_ready_and_sound(kind: str, text: Path, request: pytest.FixtureRequest) -> None:
    card = card_of(request.getfixturevalue(kind), text)
    assert serious(card) == {}
    assert card.coverage.linears_measured == card.coverage.linears
    status = {scheme.scheme: scheme.status for scheme in card.verdict.schemes}
    assert status[INT8_DYNAMIC.name] == "READY"
    assert card.simulation is not None
    perplexity = card.simulation.recipes[0].perplexity_base
    assert perplexity is not None
    assert card.simulation.evaluation.unigram_perplexity is not None
    assert perplexity < card.simulation.evaluation.unigram_perplexity / 5


# Experts -------------------------------------------------------------------------------------------------------------


def test_an_expert_that_bypasses_its_linears(moe: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes the very same, from its weights: only the hooks see nothing."""

    def bypass(model: nn.Module) -> None:
        expert = model.get_submodule("model.layers.1.mlp.experts.2")
        forward = expert.forward
        plain = {
            name: partial(functional.linear, weight=linear.weight, bias=linear.bias)
            for name, linear in expert.named_children()
            if isinstance(linear, nn.Linear)
        }
        assert len(plain) == 3

        def without_modules(x: Tensor) -> Tensor:
            expert.__dict__ |= plain  # found before the modules of these names
            try:
                return forward(x)
            finally:
                for name in plain:
                    del expert.__dict__[name]

        expert.forward = without_modules

    change_code(monkeypatch, bypass)
    card = card_of(moe, text)
    found = serious(card)
    assert set(found) == {"QA101"}
    assert "although the module around it did" in found["QA101"].message
    assert {row.module for row in card.coverage.unmeasured} == {
        f"model.layers.1.mlp.experts.2.{name}_proj" for name in ("gate", "up", "down")
    }
    assert statuses(card) == {"INCONCLUSIVE"}


def test_a_dead_expert(moe: Path, text: Path, copy: Callable[[Path], Path]) -> None:
    def kill(weights: dict[str, Tensor]) -> None:
        weights["model.layers.0.mlp.router.bias"][3] = -1e4

    card = card_of(change_weights(copy(moe), kill), text)
    found = serious(card)
    assert set(found) == {"QA101"}
    assert "expert saw 0 tokens" in found["QA101"].message
    assert all(row.module.startswith("model.layers.0.mlp.experts.3.") for row in card.coverage.unmeasured)
    assert statuses(card) == {"INCONCLUSIVE"}


# Text ----------------------------------------------------------------------------------------------------------------


def test_a_batch_of_nothing_but_padding(dense: Path, tmp_path: Path) -> None:
    rows = [*corpus_rows(), {"input_ids": [PAD] * 24, "domain": "a", "split": "calibration"}]
    card = card_of(dense, write_corpus(tmp_path / "padded.jsonl", rows))
    found = serious(card)
    assert set(found) == {"QA106"}
    assert found["QA106"].value == 1
    assert f"`row-{len(rows)}`" in found["QA106"].message
    assert statuses(card) == {"INCONCLUSIVE"}


def test_the_tokenizer_of_another_model(dense: Path, text: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(dense)
    order = np.random.default_rng(5).permutation(len(WORDS))
    word_tokenizer((*(WORDS[i] for i in order), RARE, *SPECIAL)).save_pretrained(folder)
    card = card_of(folder, text)
    assert set(serious(card)) == {"QA104"}
    assert statuses(card) == {"INCONCLUSIVE"}


def test_a_tokenizer_that_falls_back_to_fragments(dense: Path, text: Path, copy: Callable[[Path], Path]) -> None:
    """As a wrong conversion does: the text is cut elsewhere, into tokens that the vocabulary has."""
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = copy(dense)
    wrong = word_tokenizer(tuple("bdkmaeiolns") + VOCABULARY[11:])
    wrong.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=wrong.backend_tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    card = card_of(folder, text)
    assert set(serious(card)) == {"QA104"}
    assert statuses(card) == {"INCONCLUSIVE"}


# Weights and code ----------------------------------------------------------------------------------------------------


def test_embeddings_in_another_order(dense: Path, text: Path, copy: Callable[[Path], Path]) -> None:
    def shuffle(weights: dict[str, Tensor]) -> None:
        rows = weights["model.embed_tokens.weight"]
        rows[: len(WORDS)] = rows[torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(2))]

    card = card_of(change_weights(copy(dense), shuffle), text)
    assert set(serious(card)) == {"QA104"}
    assert statuses(card) == {"INCONCLUSIVE"}


@pytest.mark.parametrize(
    ("layer", "weight", "site"),
    [(0, "self_attn.o_proj", "self_attn.output"), (1, "mlp.down_proj", "mlp.output")],
)
def test_nan_at_a_layer(
    dense: Path, text: Path, copy: Callable[[Path], Path], layer: int, weight: str, site: str
) -> None:
    def spoil(weights: dict[str, Tensor]) -> None:
        weights[f"model.layers.{layer}.{weight}.weight"][5, 6] = float("nan")

    card = card_of(change_weights(copy(dense), spoil), text)
    found = serious(card)
    assert set(found) == {"QA102"}
    assert f"`layers.{layer}.{site}`" in found["QA102"].message
    assert found["QA102"].module == f"model.layers.{layer}.{site.removesuffix('.output')}"
    assert statuses(card) == {"NOT READY"}


def test_nan_that_no_evaluation_token_meets(dense: Path, text: Path, copy: Callable[[Path], Path]) -> None:
    """The simulation sees nothing of it: one word of one calibration text alone is broken."""

    def spoil(weights: dict[str, Tensor]) -> None:
        weights["model.embed_tokens.weight"][VOCABULARY.index(RARE), 0] = float("nan")

    card = card_of(change_weights(copy(dense), spoil), text)
    found = serious(card)
    assert set(found) == {"QA102"}
    assert "`embedding`" in found["QA102"].message
    dynamic = next(scheme for scheme in card.verdict.schemes if scheme.scheme == INT8_DYNAMIC.name)
    assert dynamic.kl is not None
    assert statuses(card) == {"NOT READY"}


def never_called(model: Any) -> None:
    model.config.num_hidden_layers -= 1  # transformers loops over so many


def passed_through(model: Any) -> None:
    model.get_submodule("model.layers.1").forward = lambda hidden, *_, **__: hidden


@pytest.mark.parametrize("skip", [never_called, passed_through])
def test_a_layer_that_the_forward_pass_skips(
    dense: Path, text: Path, monkeypatch: pytest.MonkeyPatch, skip: Callable[[Any], None]
) -> None:
    change_code(monkeypatch, skip)
    card = card_of(dense, text)
    errors = [finding for finding in card.findings if finding.code == "QA101" and finding.severity == "error"]
    assert [finding.message.partition(",")[0] for finding in errors] == [
        "7 modules not measured (never ran in the forward pass)"
    ]
    assert card.coverage.linears - card.coverage.linears_measured == 7
    assert statuses(card) == {"INCONCLUSIVE"}
