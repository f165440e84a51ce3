"""Models larger than memory, measured or reported under a hard limit: peak memory, seconds, and whether all is equal.

Random checkpoints are made on the spot, sharded, and removed. The limit is that of a control group where one may be
made (as root), and else the budget that the run is given, which its peak is held to. Exits with 1 where a peak is above
the limit, a profile differs, or any number of a simulation does.

    python benchmarks/scale.py [--verb report] [--limit GIB] [--shapes deep,wide,moe] [--only N] [--samples N]
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any
from uuid import uuid4

import torch
import transformers
import typer
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from quantaudit.model.blockwise.memory import available_bytes, size_text

GROUPS = Path("/sys/fs/cgroup/memory")
"""Where control groups of the first version limit memory."""
VOCABULARY = 32_000
PROFILE = "profile.safetensors"
RUN = """
import sys
from quantaudit.cli import main
try:
    main()
finally:
    # ru_maxrss would count what the process that started this one held.
    print(int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) << 10)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder. experts: 0 for a dense MLP; intermediate: of each of them."""

    layers: int
    hidden: int
    intermediate: int
    experts: int = 0

    def config(self) -> Any:
        """Its configuration: Llama, or Qwen3-MoE with two experts a token."""
        sizes: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 128,
            "num_key_value_heads": self.hidden // 128,
            "head_dim": 128,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }
        if not self.experts:
            return transformers.LlamaConfig(
                **sizes, intermediate_size=self.intermediate, architectures=["LlamaForCausalLM"]
            )
        return transformers.Qwen3MoeConfig(
            **sizes,
            moe_intermediate_size=self.intermediate,
            num_experts=self.experts,
            num_experts_per_tok=2,
            architectures=["Qwen3MoeForCausalLM"],
        )

    def block(self) -> dict[str, tuple[int, ...]]:
        """Stored tensors of one block by their names in it."""
        attention = {f"self_attn.{name}_proj.weight": (self.hidden, self.hidden) for name in "qkvo"}
        norms = {f"{name}_layernorm.weight": (self.hidden,) for name in ("input", "post_attention")}
        up, down = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        mlp: dict[str, tuple[int, ...]] = {}
        for stem in [f"mlp.experts.{n}" for n in range(self.experts)] or ["mlp"]:
            mlp |= {f"{stem}.gate_proj.weight": up, f"{stem}.up_proj.weight": up, f"{stem}.down_proj.weight": down}
        if self.experts:
            norms |= {f"self_attn.{name}_norm.weight": (128,) for name in "qk"}
            mlp["mlp.gate.weight"] = (self.experts, self.hidden)
        return {**attention, **norms, **mlp}

    @property
    def block_bytes(self) -> int:
        """Of the weights of one block, in 16 bits."""
        return 2 * sum(int(torch.Size(size).numel()) for size in self.block().values())


SHAPES = {
    "deep": [Shape(layers=layers, hidden=4096, intermediate=11008) for layers in (4, 8, 15)],
    "wide": [Shape(layers=6, hidden=hidden, intermediate=3 * hidden) for hidden in (2048, 4096, 6144)],
    "moe": [
        Shape(layers=layers, hidden=2048, intermediate=768, experts=experts) for layers, experts in ((20, 10), (16, 40))
    ],
}
"""Three numbers of equal blocks, three sizes of blocks, and experts; the largest of each has about 6 GiB."""


def make(folder: Path, shape: Shape) -> int:
    """Save a random checkpoint with one shard for each block. Returns the bytes of its weights."""
    shape.config().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    outside: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, shape.hidden),
        "lm_head.weight": (VOCABULARY, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    files: dict[str, str] = {}
    generator, total = torch.Generator().manual_seed(0), 0
    for number in range(shape.layers + 1):
        block = {f"model.layers.{number}.{name}": size for name, size in shape.block().items()}
        tensors = {
            name: torch.ones(size, dtype=torch.bfloat16)
            if len(size) == 1
            else torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, size in (block if number < shape.layers else outside).items()
        }
        file = f"model-{number + 1:05}-of-{shape.layers + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@contextmanager
def limited(limit: int) -> Iterator[Path | None]:
    """A control group with this limit, None where none can be made."""
    group = GROUPS / f"quantaudit-{uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def run(verb: str, model: Path, out: Path, arguments: list[str], group: Path | None, budget: int) -> tuple[int, float]:
    """Run a verb in a process of its own: its peak resident memory, and seconds. budget: 0 for that of the group."""

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    given = [*arguments, *(["--memory-budget", str(budget)] if budget else [])]
    command = [sys.executable, "-c", RUN, verb, str(model), "--device", "cpu", "--out", str(out), *given]
    start = perf_counter()
    done = subprocess.run(command, preexec_fn=enter, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]), perf_counter() - start


def main(
    limit: Annotated[float, typer.Option(help="GiB that a run may use")] = 3.0,
    shapes: Annotated[str, typer.Option(help="some of deep, wide, moe")] = "deep,wide,moe",
    verb: Annotated[str, typer.Option(help="measure or report")] = "measure",
    only: Annotated[int | None, typer.Option(help="of each kind, the shape with this number, from 0")] = None,
    samples: int = 6,
    max_length: int = 64,
    folder: Annotated[Path | None, typer.Option(help="where checkpoints are made")] = None,
) -> None:
    """Print one row for each checkpoint."""
    most, wrong = int(limit * 2**30), 0
    arguments = ["--samples", str(samples), "--max-length", str(max_length)]
    print("| shape | layers | block | weights | peak in memory | peak under the limit | seconds, both | same |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for name in shapes.split(","):
        for shape in SHAPES[name] if only is None else SHAPES[name][only : only + 1]:
            place = Path(tempfile.mkdtemp(prefix="quantaudit-scale-", dir=folder))
            try:
                row, good = compare(verb, place, shape, most, arguments)
            finally:
                shutil.rmtree(place)
            print(f"| {name} | {shape.layers} | {size_text(shape.block_bytes)} | {row} |", flush=True)
            wrong += not good
    raise typer.Exit(int(wrong > 0))


def compare(verb: str, place: Path, shape: Shape, limit: int, arguments: list[str]) -> tuple[str, bool]:
    """A row of the table, and whether all is as it must be."""
    weights = make(place / "model", shape)
    outs = [place / f"{way}{'' if verb == 'report' else '.safetensors'}" for way in ("by_block", "whole")]
    with limited(limit) as group:
        peak, seconds = run(verb, place / "model", outs[0], arguments, group, 0 if group else limit)
    held = (2 if verb == "report" else 1) * weights + 2**31
    if held > available_bytes():
        return f"{size_text(weights)} | | {size_text(peak)} | {seconds:.0f} | not compared", peak <= limit
    most, took = run(verb, place / "model", outs[1], arguments, None, 2 * held)
    differing = differences(*outs) if verb == "report" else [] if same_bytes(*outs) else ["profile"]
    row = f"{size_text(weights)} | {size_text(most)} | {size_text(peak)} | {took:.0f}, {seconds:.0f}"
    return f"{row} | {f'NO: {differing[:3]}' if differing else 'yes'}", not differing and peak <= limit


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files are equal."""
    return one.read_bytes() == other.read_bytes()


def differences(one: Path, other: Path) -> list[str]:
    """Where two reports differ: in a byte of the profile, or in any value of the card but times and its seal."""
    cards = [json.loads((folder / "card.json").read_text(encoding="utf-8")) for folder in (one, other)]
    for card in cards:
        card["created"] = card["seal"] = card["environment"]["timings"] = None
    flat = [dict(values(card)) for card in cards]
    names = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    return [*([] if same_bytes(one / PROFILE, other / PROFILE) else ["profile"]), *names]


def values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text and null in nested data, by its place."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from values(item, f"{name}.{key}")
    else:
        yield name, value


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    typer.run(main)
