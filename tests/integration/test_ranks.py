"""Several ranks share a run, and end in the bytes of one process; one of them ends, and the run says so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quantaudit.measure.profile import profile_bytes
from quantaudit.measure.run import measure
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.simulate.experiment import GroupOptions
from quantaudit.simulate.replay import backward_pass
from quantaudit.simulate.run import simulate
from tests.builders import load, random_corpus, save_checkpoint, tiny_model
from tests.command_line import run
from tests.families import FAMILIES, family_model
from tests.kills import content
from tests.ranks import as_ranks

LENGTHS = (24, 20, 20, 11, 9, 3)
Outputs = tuple[bytes, str]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As ranks have on one machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def outputs(folder: Path, *, by_block: bool = False) -> Outputs:
    """Profile and simulation of a checkpoint, as this rank has them."""
    loaded, corpus = load(folder, by_block=by_block), random_corpus(LENGTHS)
    profile = measure(loaded, corpus, experts="auto")
    options, schemes = GroupOptions(single=1), [INT8_STATIC, INT8_DYNAMIC]
    simulation = simulate(loaded, profile, corpus.samples, schemes, evaluation_tokens=96, groups=options)
    return profile_bytes(profile), simulation.model_dump_json()


@pytest.mark.parametrize(
    ("family", "size", "options"),
    [
        ("mixtral", 3, {}),
        ("mistral", 4, {"by_block": True}),  # more ranks than evaluation samples
    ],
)
def test_every_rank_has_what_one_process_has(family: str, size: int, options: dict[str, Any], tmp_path: Path) -> None:
    model = family_model(family) if family in FAMILIES else tiny_model(family)
    folder = save_checkpoint(tmp_path / "m", model)
    assert as_ranks(size, lambda _rank: outputs(folder, **options)) == [outputs(folder, **options)] * size


def test_where_gradients_fail_on_one_rank_no_rank_has_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    backward, failing = backward_pass.backward, set[int]()

    def fail(model: Any, batch: Any, *rest: Any) -> None:
        if batch.samples[0].index in failing:
            raise RuntimeError("out of memory")
        backward(model, batch, *rest)

    monkeypatch.setattr(backward_pass, "backward", fail)
    failing.add(random_corpus(LENGTHS).samples[1].index)
    expected = outputs(folder)
    assert json.loads(expected[1])["evaluation"]["note"].endswith("(out of memory)")
    assert as_ranks(2, lambda _rank: outputs(folder)) == [expected] * 2


def test_a_rank_is_killed_and_the_run_goes_on_to_the_bytes_of_one_process(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", tiny_model("mistral"))
    rows = [{"id": f"s{i}", "domain": "ab"[i % 2], "text": f"Sample {i}: {'words, ' * (i + 4)}end."} for i in range(7)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ("report", tmp_path / "model", "--corpus", texts, "--evaluation-tokens", "96", "--schemes", "int8")

    killed = torchrun(tmp_path, "tests.killed_rank", "9", *command, "--out", tmp_path / "two")
    (error,) = re.findall(r"^error: .*", killed.stderr, re.MULTILINE)
    log = re.fullmatch(r"error: rank 1 \(process \d+ on \S+\) was killed; .* its log is (\S+)", error)
    assert log is not None
    assert "replaying blocks" in Path(log[1]).read_text(encoding="utf-8")
    assert killed.returncode != 0  # of the launcher, which may end the other rank before that has found out
    assert killed.stdout == ""

    resumed = torchrun(tmp_path, "quantaudit", *command, "--out", tmp_path / "two", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("going on after") == 1
    assert run(None, *command, "--out", tmp_path / "one")[0] == 0
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert not [path for path in tmp_path.rglob("*quantaudit-r*") if not log[1].startswith(str(path))]


def torchrun(folder: Path, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command by two ranks, whose logs lie in the folder."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    return subprocess.run(
        [*launcher, *map(str, arguments)], env=variables, capture_output=True, text=True, timeout=240, check=False
    )
