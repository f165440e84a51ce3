"""What is mutated: a tiny checkpoint, its card, profile, simulation and artifacts, corpora, recipes and policies."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

SENTENCES = (
    "The ferry leaves at seven. ",
    "Count the spoons twice. ",
    "return sum(w * h for w, h in tiles) ",
    "Zwölf. ",
)
RECIPE = """\
quant_stage:
  quant_modifiers:
    SmoothQuantModifier: {smoothing_strength: 0.8, ignore: []}
    QuantizationModifier:
      ignore: [lm_head, "re:.*gate$"]
      config_groups:
        attention:
          targets: ["re:.*(q|k|v|o)_proj$"]
          weights: &int8 {num_bits: 8, type: int, symmetric: true, strategy: channel}
          input_activations: {num_bits: 8, type: int, symmetric: true, strategy: tensor, observer: static_minmax}
        mlp:
          targets: [Linear]
          weights: *int8
          input_activations: {num_bits: 8, type: int, symmetric: true, strategy: token, dynamic: true}
"""
GPTQ = """\
quant_stage:
  quant_modifiers:
    AWQModifier: {duo_scaling: false, ignore: [lm_head]}
    GPTQModifier: {targets: Linear, scheme: W4A16, ignore: [lm_head], block_size: 64}
"""
HARDWARE = """\
ours:
  devices: what we serve on
  mac_time: {weights_only: 1.0, int8: 0.55, fp8: 0.5}
  reason: measured
"""
POLICY = """\
extends: default
name: drafts
kl: {ready: 0.2, care: 0.4, reason: a model for drafts}
gate: {fail_on: error, severities: {QA404: "off"}, estimate: {accept: true, margin: 2, reason: r}, reason: r}
"""
SCORES = ("--evaluation-tokens", "64", "--score", "damage")
LOGITS = ("--corpus", "text.jsonl", "--max-length", "32", "--evaluation-tokens", "64")
MEASURE = ("--corpus", "text.jsonl", "--samples", "8", "--max-length", "32")


README = """---
license: apache-2.0
tags: [text-generation, "int8"]
model-index: []
---
# A model

Text, and a [link](LICENSE).

## Quantization

```yaml
---
```
"""


def build(folder: Path) -> None:
    """Fill a folder, by the product's own commands where it has them. Takes a minute."""
    build_without_running(folder)
    _run(folder, "report", "model", *MEASURE, *SCORES, "--out", "card")
    simulate = ("simulate", "model", "--profile", "card/profile.safetensors", *SCORES)
    _run(folder, *simulate, "--recipe", "recipe.yaml", "--out", "simulation.json")
    for part in ("1", "2"):
        _run(folder, "measure", "model", *MEASURE, "--shard", f"{part}/2", "--out", f"shard{part}.safetensors")
    for name in ("card.json", "profile.safetensors"):
        shutil.copy(folder / "card" / name, folder / name)
    # Whose verification is written into it.
    shutil.copytree(folder / "card", folder / "verified")
    verify = ("verify", "plain.yaml", "model", "--card", "verified/card.json", "--evaluation-tokens", "64")
    _run(folder, *verify, "--save", "artifact")


def build_without_running(folder: Path) -> None:
    """What needs no command: corpora, checkpoints, recipes, a policy, artifacts of other libraries."""
    folder.mkdir(parents=True)
    _corpora(folder)
    _models(folder)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "gptq.yaml").write_text(GPTQ, encoding="utf-8")
    (folder / "recipe.json").write_text(json.dumps(_as_json(RECIPE)), encoding="utf-8")
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    (folder / "hardware.yaml").write_text(HARDWARE, encoding="utf-8")
    plain = RECIPE.replace("    SmoothQuantModifier: {smoothing_strength: 0.8, ignore: []}\n", "")
    (folder / "plain.yaml").write_text(plain, encoding="utf-8")
    (folder / "README.md").write_text(README, encoding="utf-8")
    _quanto(folder / "quanto")
    _openvino(folder / "openvino")


def _as_json(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _run(folder: Path, *argv: str) -> None:
    command = [sys.executable, "-m", "quantaudit", *argv]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"quantaudit {argv[0]}: exit {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")


def _corpora(folder: Path) -> None:
    from PIL import Image

    text = [SENTENCES[i % 4] + SENTENCES[(i + 1) % 4] for i in range(10)]
    rows: list[dict[str, Any]] = [{"text": line, "domain": "ab"[i % 2]} for i, line in enumerate(text)]
    turns = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "At seven."}]
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}}
    calls = [turns[0], {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "7"}]
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    rows += [{"messages": turns}, {"messages": calls, "tools": [tool]}, {"input_ids": [5, 6, 7, 8]}]
    rows += [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:10]), encoding="utf-8")
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "lines.txt").write_text("\n".join(text), encoding="utf-8")
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": text, "domain": ["a", "b"] * 5}), folder / "rows.parquet")
    Image.new("RGB", (8, 8), (200, 10, 10)).save(folder / "image.png")
    images = [{"text": line, "image": "image.png"} for line in text[:4]]
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in images), encoding="utf-8")


def _models(folder: Path) -> None:
    from tests.builders import save_checkpoint, tiny_model
    from tests.unit.model.loading.test_gguf import write_llama

    save_checkpoint(folder / "model", tiny_model("llama"))
    save_checkpoint(folder / "sharded", tiny_model("llama"), max_shard_size="100KB")
    write_llama(folder / "tiny.gguf")


def _quanto(folder: Path) -> None:
    from safetensors.numpy import save_file

    folder.mkdir()
    module = "model.layers.1.mlp.down_proj"
    types = {"weights": "qint8", "activations": "qint8"}
    (folder / "quanto_qmap.json").write_text(json.dumps({module: types}), encoding="utf-8")
    save_file(
        {
            f"{module}.weight._data": np.ones((64, 128), np.int8),
            f"{module}.weight._scale": np.ones((64, 1), np.float32),
            f"{module}.input_scale": np.ones((), np.float32),
            f"{module}.output_scale": np.ones((), np.float32),
        },
        folder / "model.safetensors",
    )


def _openvino(folder: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    folder.mkdir()
    x = ops.parameter([-1, -1, 128], np.float32)
    ends = [ops.constant(np.float32(end)) for end in (-3, 3, -3, 3)]
    scale = ops.constant(np.full((64, 1), 0.01, np.float32))
    weight = ops.multiply(ops.convert(ops.constant(np.ones((64, 128), np.int8)), np.float32), scale)
    product = ops.matmul(ops.fake_quantize(x, *ends, levels=255), weight, transpose_a=False, transpose_b=True)
    product.set_friendly_name("__module.model.layers.1.mlp.down_proj/ov_ext::linear/MatMul")
    openvino.save_model(openvino.Model([product], [x]), folder / "openvino_model.xml", compress_to_fp16=False)
