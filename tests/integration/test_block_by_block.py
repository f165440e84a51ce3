"""A model whose blocks stay on disk is measured to the same bytes as the whole model, in memory for one block."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from quantaudit import cli
from quantaudit.common.choices import Experts
from quantaudit.errors import MeasurementError
from quantaudit.measure.paper.token_ratios import token_ratios
from quantaudit.measure.profile import Profile, load_profile, profile_bytes
from quantaudit.measure.run import measure
from quantaudit.measure.shard import Shard
from quantaudit.model.blockwise import budget, checkpoint_blocks
from quantaudit.model.blockwise.budget import PROGRAM
from quantaudit.model.blockwise.input_store import Room
from quantaudit.model.blockwise.memory import resident_bytes
from quantaudit.model.forward.arithmetic import computed_in
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.pipeline.measure import measure as run_measure
from quantaudit.pipeline.prepare import prepare
from quantaudit.settings import Settings
from tests.builders import hooks, load, random_corpus, save_checkpoint, tiny_model
from tests.families import FAMILIES, family_model
from tests.tiny_architectures import tiny_model as any_model
from tests.vision import save_corpus, save_gemma, save_qwen

SHAPES = ("gemma3n_text", "recurrent_gemma", "jamba", "zamba2", "ernie4_5_moe", "gemma4_unified", "fuyu", "hrm_text")
"""Architectures of other kinds than those of the families: keys shared between layers, recurrences, lists of experts
that differ by layer, images without a tower, blocks that are called in cycles."""


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument of a block that waits goes to disk."""
    monkeypatch.setattr(budget, "UNLIMITED", Room(device=0))


def same(folder: Path, experts: Experts = "auto", batch_size: int = 1) -> int:
    """Measure both ways, and return how often blocks were read."""
    corpus = random_corpus([40, 33, 33, 29, 24, 20, 11, 3])
    whole, parts = load(folder), load(folder, by_block=True)
    assert parts.info == whole.info
    assert parts.weights is not None, parts.runs_whole
    expected = measure(whole, corpus, experts=experts, batch=BatchLimit(batch_size))
    found = measure(parts, corpus, experts=experts, batch=BatchLimit(batch_size))
    assert profile_bytes(found) == profile_bytes(expected)
    assert hooks(parts.model) == hooks(whole.model) + len(parts.weights.blocks)
    return parts.weights.loads


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_to_the_same_bytes(family: str, tmp_path: Path, spilled: None) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model(family), max_shard_size="100KB")
    assert same(folder) == 2 * 2  # each block for a few tokens, and for all


@pytest.mark.parametrize("shape", SHAPES)
def test_so_are_other_shapes(shape: str, tmp_path: Path, spilled: None) -> None:
    folder = save_checkpoint(tmp_path / "m", any_model(shape))
    parts = load(folder, by_block=True)
    if parts.weights is None:
        assert shape == "hrm_text"
        assert parts.runs_whole == "it calls a block several times"
        measure(parts, random_corpus([12, 3]))
    else:
        same(folder)


@pytest.mark.parametrize("save", [save_qwen, save_gemma])
def test_so_are_images(save: Callable[[Path], Path], tmp_path: Path, spilled: None) -> None:
    folder, corpus = save(tmp_path / "m"), save_corpus(tmp_path)
    settings = Settings.of(str(folder), str(corpus), device="cpu")
    inputs = prepare(settings)
    parts = load(folder, by_block=True)
    assert parts.weights is not None
    with eager_attention(inputs.loaded.model):
        expected = measure(inputs.loaded, inputs.corpus)
    with eager_attention(parts.model):
        found = measure(parts, inputs.corpus)
    # What reads images is named by whoever prepares a run.
    provenance = found.provenance.model_copy(update={"model": expected.provenance.model})
    assert profile_bytes(Profile.assemble(provenance, found.statistics)) == profile_bytes(expected)


@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe", "gemma3"])
def test_ratios_of_tokens_are_the_same_either_way(family: str, tmp_path: Path, spilled: None) -> None:
    folder, corpus = save_checkpoint(tmp_path / "m", family_model(family)), random_corpus([40, 33, 20, 3])
    whole, parts = load(folder), load(folder, by_block=True)
    assert parts.weights is not None
    expected, found = token_ratios(whole, corpus), token_ratios(parts, corpus)
    assert found == expected
    assert {row.tokens for row in found.values()} == {96}


@pytest.mark.parametrize("family", ["qwen3-moe", "llama4"])
@pytest.mark.parametrize("experts", ["all", "routed"])
def test_experts_on_all_tokens_and_batches_with_padding(family: str, experts: Experts, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model(family))
    same(folder, experts, batch_size=3)


def test_experts_that_few_tokens_reach_have_a_pass_of_their_own(tmp_path: Path, spilled: None) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3-moe", num_experts=32))
    assert same(folder) == 2 * 2 * 2


def test_tied_embeddings_and_weights_in_several_dtypes(tmp_path: Path) -> None:
    model = family_model("qwen3", tie_word_embeddings=True)
    for layer in model.model.layers:
        layer.input_layernorm.float()
    folder = save_checkpoint(tmp_path / "m", model)
    parts = load(folder, by_block=True)
    assert parts.model.lm_head.weight is parts.model.model.embed_tokens.weight
    same(folder)


def test_products_in_float32(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3-moe"))
    corpus = random_corpus([40, 33, 20, 3])
    found = []
    for by_block in (False, True):
        loaded = load(folder, by_block=by_block)
        with computed_in("float32", loaded.model), eager_attention(loaded.model):
            found.append(profile_bytes(measure(loaded, corpus)))
    assert found[0] == found[1]


def test_shards(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3"))
    corpus, shard = random_corpus([40, 33, 20, 11, 3]), Shard(index=2, count=2)
    whole, parts = (measure(load(folder, by_block=by), corpus, shard=shard) for by in (False, True))
    assert profile_bytes(parts) == profile_bytes(whole)


def test_a_sample_that_fails_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    parts = load(folder, by_block=True)
    corpus = random_corpus([30, 20, 10])
    corpus.samples[1].ids[4] = 10**6
    before = hooks(parts.model)
    with pytest.raises(MeasurementError, match=f"sample {corpus.samples[1].id}: the model's own forward"):
        measure(parts, corpus)
    assert hooks(parts.model) == before


def test_a_block_that_is_called_again_after_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_blocks, "_calls_twice", lambda *_: False)
    parts = load(save_checkpoint(tmp_path / "m", any_model("hrm_text")), by_block=True)
    with pytest.raises(MeasurementError, match=r"calls model\.L_module\.layers\.0 several times"):
        measure(parts, random_corpus([12, 3]))


def test_a_model_that_keeps_something_of_a_batch_between_blocks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As code that comes with a checkpoint may: here each layer adds what the one before it has left behind."""
    layer = transformers.models.llama.modeling_llama.LlamaDecoderLayer
    plain = layer.forward

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        left_behind = layer.left_behind if self.self_attn.layer_idx else 0
        layer.left_behind = hidden_states.mean()
        return plain(self, hidden_states + left_behind, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", forward)
    monkeypatch.setattr(layer, "left_behind", 0, raising=False)
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    corpus = random_corpus([20, 12, 3])
    measure(load(folder), corpus)
    with pytest.raises(MeasurementError, match="batches that run side by side change each other"):
        measure(load(folder, by_block=True), corpus)


def test_a_model_that_does_not_fit_its_budget_says_so_and_is_measured(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    settings = Settings.of(str(folder), samples=4, max_length=32, device="cpu")
    said: list[str] = []
    expected = run_measure(settings, memory=resident_bytes() + 8 * PROGRAM)
    found = run_measure(settings, say=said.append, memory=resident_bytes() + PROGRAM // 2)
    assert profile_bytes(found) == profile_bytes(expected)
    assert "do not fit into" in said[0]
    assert "run block by block, each read from disk" in said[0]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))

    def run(budget: object) -> tuple[int, str]:
        given = f"measure {folder} --samples 2 --max-length 16 --out {tmp_path}/p.safetensors --memory-budget {budget}"
        monkeypatch.setattr("sys.argv", ["quantaudit", *given.split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), " ".join(capsys.readouterr().err.split())

    code, said = run("1MiB")
    assert code == 2
    assert "--memory-budget 1MiB: a single block does not fit give it the budget that" in said
    code, said = run("lots")
    assert code == 2
    assert "--memory-budget lots: not an amount of memory" in said
    code, said = run(resident_bytes() + PROGRAM // 2)
    assert code == 0
    assert "run block by block" in said
    assert load_profile(tmp_path / "p.safetensors").samples


MEASURED = """
import sys
from pathlib import Path
import torch
from quantaudit.measure.profile import profile_bytes
from quantaudit.measure.run import measure
from tests.builders import load, random_corpus

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) << 10

folder, by_block, small = Path(sys.argv[1]), sys.argv[2] == "by_block", Path(sys.argv[3])
corpus = random_corpus([12, 9, 3])
measure(load(small, by_block=by_block), corpus)  # imports, compiles
before = peak()
profile = measure(load(folder, by_block=by_block), corpus)
print(peak() - before)
Path(sys.argv[4]).write_bytes(profile_bytes(profile))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_is_that_of_a_block_and_not_of_the_model(tmp_path: Path) -> None:
    """A checkpoint of 134 MB, whose blocks have 11 MB each."""
    small = save_checkpoint(tmp_path / "small", tiny_model("llama"))
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=512, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=8
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    size = sum(parameter.nbytes for parameter in model.parameters())
    folder = save_checkpoint(tmp_path / "m", model, max_shard_size="20MB")
    grown = {}
    for way in ("whole", "by_block"):
        out = tmp_path / f"{way}.safetensors"
        command = [sys.executable, "-c", MEASURED, str(folder), way, str(small), str(out)]
        # glibc keeps what threads free, more or less of it from run to run: here what is in use counts.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        grown[way] = int(done.stdout.splitlines()[-1])
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "by_block.safetensors").read_bytes()
    assert grown["whole"] > 0.9 * size
    assert grown["by_block"] < 0.4 * size
