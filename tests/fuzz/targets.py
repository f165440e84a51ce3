"""Which file of the material is mutated, and which command reads it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.fuzz.material import LOGITS, MEASURE, SCORES
from tests.fuzz.mutations import HOSTILE_NUMBERS, HOSTILE_TEXTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A file and a command. kind: as in `mutations`; weight: its share of inputs; file: None where argv is mutated."""

    name: str
    argv: tuple[str, ...]
    file: str | None = None
    kind: str = "bytes"
    weight: int = 4
    seconds: int = 10
    """Processor time of one command; it may wait six times as long on a busy machine."""

    def command(self, random: Random) -> list[str]:
        """The command; where no file is mutated, with one of its values made hostile."""
        argv = list(self.argv)
        if self.file is None:
            at = random.randrange(1, len(argv))
            argv[at] = random.choice((*HOSTILE_TEXTS[:10], *HOSTILE_TEXTS[11:], *map(str, HOSTILE_NUMBERS), "9" * 5000))
            argv[at] = argv[at].replace("\0", "").encode("utf-8", "replace").decode()
        return argv


BUDGET = ("advise", "--card", "card/card.json", "--max-bits", "9", "--out", "new.yaml")
GATE = ("gate", "recipe.yaml", "--card", "card.json")
_MEASURE = ("measure", "model", "--corpus")
_SHORT = ("--max-length", "32", "--out", "new.safetensors")

TARGETS = (
    Target(name="recipe", file="recipe.yaml", kind="yaml", argv=GATE, weight=12),
    Target(name="recipe-calibrated", file="gptq.yaml", kind="yaml", argv=("gate", "gptq.yaml", "--card", "card.json")),
    Target(name="recipe-json", file="recipe.json", kind="json", argv=("gate", "recipe.json", "--card", "card.json")),
    Target(name="policy", file="policy.yaml", kind="yaml", argv=(*GATE, "--policy", "policy.yaml"), weight=8),
    Target(name="hardware", file="hardware.yaml", kind="yaml", argv=(*BUDGET, "--hardware", "hardware.yaml")),
    Target(name="card-gate", file="card.json", kind="json", argv=GATE, weight=8),
    Target(name="card-sarif", file="card.json", kind="json", argv=(*GATE, "--format", "sarif"), weight=2),
    Target(name="card-junit", file="card.json", kind="json", argv=(*GATE, "--format", "junit"), weight=2),
    Target(name="card-render", file="card.json", kind="json", argv=("render", "card.json", "--out", "new"), weight=5),
    Target(name="card-insert", file="card.json", kind="json", argv=("insert", "card.json", "README.md"), weight=2),
    Target(name="readme", file="README.md", argv=("insert", "card.json", "README.md"), weight=2),
    Target(name="readme-front-matter", file="README.md", argv=("insert", "card.json", "README.md", "--front-matter")),
    Target(
        name="card-compare",
        file="card.json",
        kind="json",
        argv=("compare", "card.json", "published:Qwen3", "--fail-on", "peak=2", "--out", "new"),
        weight=4,
    ),
    Target(
        name="simulation",
        file="simulation.json",
        kind="json",
        argv=(*GATE, "--simulation", "simulation.json"),
        weight=6,
    ),
    Target(
        name="profile-scales",
        file="profile.safetensors",
        kind="safetensors",
        argv=("scales", "profile.safetensors", "--out", "new.safetensors"),
        weight=6,
    ),
    Target(
        name="profile-merge",
        file="shard2.safetensors",
        kind="safetensors",
        argv=("merge", "shard1.safetensors", "shard2.safetensors", "--out", "new.safetensors"),
    ),
    Target(
        name="profile-simulate",
        file="profile.safetensors",
        kind="safetensors",
        argv=("simulate", "model", "--profile", "profile.safetensors", *SCORES, "--out", "new.json"),
        weight=1,
    ),
    Target(name="config-sites", file="model/config.json", kind="json", argv=("sites", "model"), weight=6),
    Target(
        name="config-measure", file="model/config.json", kind="json", argv=("measure", "model", *MEASURE, *_SHORT[2:])
    ),
    Target(
        name="weights",
        file="model/model.safetensors",
        kind="safetensors",
        argv=("measure", "model", *MEASURE, *_SHORT[2:]),
        weight=3,
    ),
    Target(
        name="index",
        file="sharded/model.safetensors.index.json",
        kind="json",
        argv=("measure", "sharded", *MEASURE, *_SHORT[2:]),
        weight=3,
    ),
    Target(
        name="tokenizer", file="model/tokenizer.json", kind="json", argv=("measure", "model", *MEASURE, *_SHORT[2:])
    ),
    Target(
        name="tokenizer-config",
        file="model/tokenizer_config.json",
        kind="json",
        argv=("measure", "model", *MEASURE, *_SHORT[2:]),
        weight=3,
    ),
    Target(
        name="template",
        file="model/chat_template.jinja",
        kind="text",
        argv=(*_MEASURE, "chats.jsonl", *_SHORT),
        weight=2,
    ),
    Target(name="corpus-jsonl", file="text.jsonl", kind="jsonl", argv=(*_MEASURE, "text.jsonl", *_SHORT)),
    Target(name="corpus-chats", file="chats.jsonl", kind="jsonl", argv=(*_MEASURE, "chats.jsonl", *_SHORT), weight=6),
    Target(name="corpus-json", file="rows.json", kind="json", argv=(*_MEASURE, "rows.json", *_SHORT)),
    Target(name="corpus-txt", file="lines.txt", kind="text", argv=(*_MEASURE, "lines.txt", *_SHORT), weight=2),
    Target(name="corpus-gz", file="rows.jsonl.gz", kind="gzip", argv=(*_MEASURE, "rows.jsonl.gz", *_SHORT), weight=3),
    Target(name="corpus-parquet", file="rows.parquet", argv=(*_MEASURE, "rows.parquet", *_SHORT), weight=3),
    Target(name="corpus-image", file="image.png", argv=(*_MEASURE, "images.jsonl", *_SHORT), weight=2),
    Target(
        name="corpus-images", file="images.jsonl", kind="jsonl", argv=(*_MEASURE, "images.jsonl", *_SHORT), weight=2
    ),
    Target(name="gguf", file="tiny.gguf", argv=("measure", "tiny.gguf", *MEASURE, *_SHORT[2:]), weight=4),
    Target(
        name="artifact-config",
        file="artifact/config.json",
        kind="json",
        argv=("conform", "artifact", "--card", "card.json"),
        weight=6,
    ),
    Target(
        name="artifact-weights",
        file="artifact/model.safetensors",
        kind="safetensors",
        argv=("conform", "artifact", "--card", "card.json"),
        weight=5,
    ),
    Target(name="artifact-card", file="card.json", kind="json", argv=("conform", "artifact", "--card", "card.json")),
    Target(
        name="quanto-map",
        file="quanto/quanto_qmap.json",
        kind="json",
        argv=("conform", "quanto", "--card", "card.json"),
        weight=3,
    ),
    Target(
        name="openvino",
        file="openvino/openvino_model.xml",
        kind="text",
        argv=("conform", "openvino", "--card", "card.json"),
        weight=5,
    ),
    Target(
        name="openvino-weights",
        file="openvino/openvino_model.bin",
        argv=("conform", "openvino/openvino_model.xml", "--card", "card.json"),
        weight=1,
    ),
    Target(
        name="advise-card",
        file="card/card.json",
        kind="json",
        weight=1,
        seconds=60,
        argv=(
            "advise",
            "plain.yaml",
            "--card",
            "card/card.json",
            "--model",
            "model",
            "--no-smoothing",
            "--evaluation-tokens",
            "64",
            "--out",
            "new.yaml",
        ),
    ),
    Target(
        name="advise-budget",
        file="card/card.json",
        kind="json",
        weight=1,
        seconds=30,
        argv=BUDGET,
    ),
    Target(
        name="verify-recipe",
        file="plain.yaml",
        kind="yaml",
        weight=1,
        seconds=60,
        argv=("verify", "plain.yaml", "model", "--card", "card/card.json", "--evaluation-tokens", "64"),
    ),
    Target(name="card-atlas", file="card/card.json", kind="json", argv=("atlas", "card", "--out", "new"), weight=2),
    Target(name="card-check", file="card/card.json", kind="json", argv=("card", "--check", "card/card.json"), weight=2),
    Target(
        name="config-plan",
        file="model/config.json",
        kind="json",
        argv=("plan", "model", "--corpus", "text.jsonl", "--evaluation-tokens", "64"),
    ),
    Target(
        name="logits-config",
        file="artifact/config.json",
        kind="json",
        argv=("compare", "--logits", "model", "artifact", *LOGITS, "--out", "new"),
        weight=3,
    ),
    Target(
        name="logits-weights",
        file="artifact/model.safetensors",
        kind="safetensors",
        argv=("compare", "--logits", "model", "artifact", *LOGITS),
        weight=2,
    ),
    Target(name="options-gate", argv=(*GATE, "--policy", "default", "--format", "json"), weight=3),
    Target(
        name="options-measure",
        weight=3,
        argv=(
            "measure",
            "model",
            "--corpus",
            "text.jsonl",
            "--samples",
            "4",
            "--max-length",
            "32",
            "--batch-size",
            "2",
            "--experts",
            "auto",
            "--attention",
            "auto",
            "--dtype",
            "auto",
            "--device",
            "cpu",
            "--seed",
            "1",
            "--shard",
            "1/1",
            "--corpus-tokenizer",
            "model",
            "--out",
            "new.safetensors",
        ),
    ),
    Target(
        name="options-simulate",
        weight=1,
        argv=(
            "simulate",
            "model",
            "--profile",
            "profile.safetensors",
            "--scheme",
            "nvfp4",
            "--recipe",
            "plain.yaml",
            "--single-groups",
            "1",
            "--score",
            "damage",
            "--evaluation-tokens",
            "64",
            "--out",
            "new.json",
        ),
    ),
    Target(
        name="options-scales",
        weight=2,
        argv=(
            "scales",
            "profile.safetensors",
            "--scheme",
            "int8_static_per_tensor",
            "--observer",
            "mse",
            "--out",
            "new.safetensors",
        ),
    ),
    Target(
        name="options-conform", argv=("conform", "artifact", "--card", "card.json", "--policy", "default"), weight=2
    ),
    Target(
        name="options-logits",
        weight=2,
        argv=(
            "compare",
            "--logits",
            "model",
            "sharded",
            *LOGITS,
            "--fail-on",
            "kl=0.1",
            "--samples",
            "8",
            "--seed",
            "1",
            "--format",
            "json",
            "--out",
            "new",
        ),
    ),
    Target(
        name="options-budget",
        weight=1,
        seconds=30,
        argv=BUDGET,
    ),
    Target(name="options-render", argv=("render", "card.json", "--template-dir", "card", "--out", "new"), weight=1),
)
