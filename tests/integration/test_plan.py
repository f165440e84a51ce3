"""A plan needs a configuration alone, and says of memory what a report says under the same settings."""

from __future__ import annotations

import json
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from quantaudit.common.progress import Job, Snapshot
from quantaudit.corpus.load import load_corpus
from quantaudit.model.blockwise import budget as blockwise_budget
from quantaudit.model.blockwise.budget import PROGRAM
from quantaudit.model.blockwise.memory import resident_bytes, size_text
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.load import load_skeleton
from quantaudit.model.sites import discover
from quantaudit.pipeline.passes import COPIES
from quantaudit.pipeline.plan.fit import prepare_within
from quantaudit.pipeline.plan.probe import flops, probed_speed, speed_by_flops, speed_by_tokens
from quantaudit.pipeline.plan.run import Machine, plan
from quantaudit.pipeline.prepare import prepare
from quantaudit.pipeline.schedule import announce, schedule
from quantaudit.settings import Settings
from tests.builders import save_checkpoint, tiny_config, tiny_model
from tests.command_line import Capture, run
from tests.families import family_model

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--samples", "8", "--max-length", "48", "--evaluation-tokens", "64", "--schemes", "int8", "--device", "cpu")
GIVEN = ("--tokens-per-second", "1000")


class Silent:
    """A bar that nobody sees."""

    def begin(self, now: Snapshot) -> None: ...

    def end(self, now: Snapshot) -> None: ...


@pytest.fixture(scope="module", params=["llama", "qwen3-moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model("llama") if request.param == "llama" else family_model(request.param)
    return save_checkpoint(tmp_path_factory.mktemp("planned") / "m", model)


@pytest.fixture
def config_alone(tmp_path: Path) -> Path:
    tiny_config("llama").save_pretrained(tmp_path)
    return tmp_path


def test_weights_without_elements_are_refused(config_alone: Path, capsys: Capture) -> None:
    path = config_alone / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 0}))
    code, _, err = run(capsys, "plan", config_alone, *SMALL)
    assert code == 2
    assert "makes model.layers.0.mlp.gate_proj a weight of shape [0, 64], which holds nothing" in err


def test_a_configuration_is_enough(config_alone: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "plan", config_alone, *SMALL, *GIVEN, "--format", "json")
    assert code == 0, err
    told = json.loads(out)
    model = tiny_model("llama")
    assert told["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert told["weights"]["total"] == sum(parameter.nbytes for parameter in model.parameters())
    blocks = [sum(parameter.nbytes for parameter in block.parameters()) for block in model.model.layers]
    assert (told["weights"]["blocks"], told["weights"]["largest_block"]) == (len(blocks), max(blocks))
    assert told["weights"]["outside"] == told["weights"]["total"] - sum(blocks)
    assert not told["text"]["counted"]
    assert told["chosen"] == "whole"
    assert told["tokens_per_second"] == pytest.approx(1000)


@pytest.mark.parametrize(("folder", "by_block"), [("llama", False), ("qwen3-moe", True)], indirect=["folder"])
def test_plan_and_report_say_the_same_of_memory(folder: Path, by_block: bool) -> None:
    corpus = load_corpus("builtin")
    options = {"samples": 8, "max_length": 48, "evaluation_tokens": 64, "scheme_set": "int8"}
    settings = Settings.of(model=str(folder), device="cpu", **options)  # type: ignore[arg-type]
    memory = 1 << 40
    said: list[str] = []
    if by_block:
        memory = resident_bytes() + PROGRAM
    inputs = prepare(settings, memory=memory, copies=COPIES)
    assert (inputs.loaded.weights is not None) == by_block
    job = Job(Silent())
    announce(inputs, job, said.append, partial(schedule, inputs, rendered=True))
    job.close()
    way = plan(settings, locate(str(folder), weights=False), corpus, Machine(memory=memory, tflops=1.0)).way(
        "block by block" if by_block else "whole"
    )
    assert said[1].startswith(f"about {size_text(way.memory or 0)} of memory")
    assert ("temporary folder" in said[1]) == bool(way.disk)


def test_where_weights_fit_and_a_run_does_not_blocks_are_left_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A vocabulary far larger than the model: logits take what the weights leave of a process that holds little yet."""
    monkeypatch.setattr(blockwise_budget, "resident_bytes", lambda: 600 << 20)
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama", vocab_size=1 << 17))
    asked = ("plan", folder, "--device", "cpu", *GIVEN, "--format", "json")
    ways = json.loads(run(capsys, *asked, "--memory-budget", "64GiB")[1])["ways"]
    whole, parts = ways[0]["memory"], ways[1]["memory"]
    budget = max(parts, (600 << 20) + 2 * PROGRAM)
    assert budget < whole
    code, out, _ = run(capsys, *asked, "--memory-budget", budget)
    assert (code, json.loads(out)["chosen"]) == (0, "block by block")
    settings, said = Settings.of(model=str(folder), device="cpu"), list[str]()
    assert prepare(settings, memory=budget, copies=COPIES).loaded.weights is None  # by the size of its weights
    inputs = prepare_within(settings, budget, said.append)
    assert inputs.loaded.weights is not None
    assert inputs.loaded.weights.budget == budget
    assert said[-1].startswith(
        f"a run of the whole model takes {size_text(whole)}, of {size_text(budget)}: run block by"
    )
    assert prepare_within(settings, whole).loaded.weights is None


def test_a_budget_that_holds_no_block_is_said_and_the_least_that_does(config_alone: Path, capsys: Capture) -> None:
    asked = ("plan", config_alone, *SMALL, *GIVEN)
    code, out, _ = run(capsys, *asked, "--memory-budget", "300MiB")
    assert code == 1
    assert "does not run within 300 MiB" in out
    code, out, _ = run(capsys, *asked, "--memory-budget", "300MiB", "--format", "json")
    told = json.loads(out)
    assert (code, told["chosen"]) == (1, None)
    least = min(way["least_budget"] for way in told["ways"])
    assert run(capsys, *asked, "--memory-budget", least + (1 << 29))[0] == 0


def test_a_model_wider_than_memory_is_planned_and_never_made(config_alone: Path, capsys: Capture) -> None:
    """A machine's speed is taken from a corner of its weights: a row of them alone may be gigabytes."""
    config = json.loads((config_alone / "config.json").read_text())
    (config_alone / "config.json").write_text(json.dumps(config | {"hidden_size": 1 << 31}))
    code, out, err = run(capsys, "plan", config_alone, *SMALL, "--format", "json")
    assert code == 1, err
    told = json.loads(out)
    assert told["weights"]["largest_block"] > 1 << 40
    assert all(way["why_not"] for way in told["ways"])


def test_a_model_without_layers_is_named_as_it_was_given(config_alone: Path, capsys: Capture) -> None:
    config = json.loads((config_alone / "config.json").read_text())
    (config_alone / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 0}))
    code, _, err = run(capsys, "plan", config_alone, *SMALL)
    assert code == 2
    assert f"error: {config_alone}: no decoder layers found" in err


def test_ranks_share_time_and_memory(config_alone: Path, capsys: Capture) -> None:
    asked = ("plan", config_alone, *SMALL, *GIVEN, "--memory-budget", "64GiB", "--format", "json")
    one, two = (json.loads(run(capsys, *asked, "--ranks", ranks)[1]) for ranks in (1, 2))
    times = [
        {stage["title"]: stage["seconds"] for stage in told["ways"][0]["stages"] if "loading" not in stage["title"]}
        for told in (one, two)
    ]
    assert times[0].keys() == times[1].keys()
    assert all(
        times[1][title] == pytest.approx(seconds / 2) for title, seconds in times[0].items() if "card" not in title
    )
    assert two["ways"][0]["memory"] <= one["ways"][0]["memory"]


MISTAKES = {
    "no such model": (("nowhere/at/all",), "no such model folder"),
    "no configuration": (("empty",), "no config.json"),
    "no such architecture": (("unknown",), "configuration cannot be loaded"),
    "sizes that are none": (("impossible",), "configuration cannot be loaded"),
    "two speeds": (("good", "--tflops", "1", "--tokens-per-second", "1"), "two speeds"),
    "no speed": (("good", "--tflops", "-1"), "not a speed"),
    "no such format": (("good", "--format", "yaml"), "yaml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_error(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    configs = {"good": {"model_type": "llama"}, "unknown": {"model_type": "no-such"}}
    configs["impossible"] = {"model_type": "llama", "hidden_size": -1}  # type: ignore[dict-item]
    (tmp_path / "empty").mkdir()
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    arguments, cause = MISTAKES[mistake]
    code, out, err = run(capsys, "plan", *arguments, *SMALL)
    assert (code, out) == (2, "")
    assert cause in err
    assert len(err.strip().splitlines()) <= 2


def test_operations_are_those_of_the_experts_that_run(folder: Path) -> None:
    model = load_skeleton(locate(str(folder), weights=False))
    blocks = discover(model).blocks
    config = model.config
    for path in blocks:
        expected = 0.0
        for name, module in model.get_submodule(path).named_modules():
            if isinstance(module, torch.nn.Linear):
                routed = ".experts." in f".{name}."
                share = config.num_experts_per_tok / config.num_experts if routed else 1.0
                expected += 2 * share * module.in_features * module.out_features
        assert flops(model, path) == pytest.approx(expected)
    assert speed_by_tokens(model, blocks, 50).forward == pytest.approx(1 / 50)
    assert speed_by_flops(model, blocks, 1e9).forward == pytest.approx(sum(flops(model, p) for p in blocks) / 1e9)


def test_a_probe_runs_two_blocks_and_never_the_whole_model(folder: Path) -> None:
    model = load_skeleton(locate(str(folder), weights=False)).to(torch.bfloat16)
    blocks = discover(model).blocks
    more = [model.get_submodule(path) for path in blocks[2:]]
    speed = probed_speed(model, blocks, torch.device("cpu"), 32)
    assert 0 < speed.forward < speed.scored < 1
    assert all(not tensor.is_meta for path in blocks[:2] for tensor in model.get_submodule(path).parameters())
    assert all(tensor.is_meta for block in more for tensor in block.parameters())


def test_the_documentation_has_what_large_models_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["plan.py"])
    row = runpy.run_path(str(ROOT / "benchmarks/plan.py"))["large"]("like Llama-3-70B")
    assert row in (ROOT / "docs/scale.md").read_text(encoding="utf-8")
