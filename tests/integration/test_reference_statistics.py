"""The exported reference statistics against a second implementation: plain PyTorch, own hooks, own float64 sums.

Nothing of quantaudit is used but the command line that writes the export and the loading of the same checkpoint.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quantaudit.model.loading.load import LoadedModel
from tests.builders import load, save_checkpoint
from tests.families import family_model
from tests.integration.test_cli import main

LEVELS = (0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
MASSIVE = "layers.11.mlp.down_proj"
"""Its input has massive activations whatever the median."""
BF16_STEP = 2**-7
"""Largest distance between neighbouring bfloat16 values, relative to them."""
TEXTS = (
    "The tide had gone out before anyone thought of the boat.",
    "def area(r):\n    return 3.14159 * r ** 2\n",
    "<|im_start|>user\nWhat is seven times eight?<|im_end|>\n<|im_start|>assistant\nFifty-six.<|im_end|>\n",
    "Les résultats, publiés hier, n'ont surpris personne : 42 % des voix.",
    "A",
)

Pick = Callable[[nn.Module, tuple[Any, ...], Any], Tensor]
Tap = tuple[list[str], Pick]
"""Modules, and what to take of each call: (module, arguments, output) → tensor."""
Seen = list[tuple[int, Tensor]]
"""(row of the corpus, float64 [tokens, channels]) of every call."""


def put_out(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def given(_module: nn.Module, args: tuple[Any, ...], _output: Any) -> Tensor:
    tensor: Tensor = args[0]
    return tensor


def logits_of_router(module: Any, args: tuple[Any, ...], _output: Any) -> Tensor:
    return functional.linear(args[0].reshape(-1, args[0].shape[-1]), module.weight)


def collect(model: nn.Module, rows: list[list[int]], taps: dict[str, Tap]) -> dict[str, Seen]:
    """Run each row alone and keep every tapped tensor."""
    seen: dict[str, Seen] = defaultdict(list)
    current = [0]
    handles = []
    for name, (paths, pick) in taps.items():
        for path in paths:

            def hook(module: Any, args: Any, output: Any, name: str = name, pick: Pick = pick) -> None:
                tensor = pick(module, args, output).detach()
                seen[name].append((current[0], tensor.reshape(-1, tensor.shape[-1]).to(torch.float64)))

            handles.append(model.get_submodule(path).register_forward_hook(hook))
    for index, row in enumerate(rows):
        current[0] = index
        with torch.no_grad():
            model(input_ids=torch.tensor([row]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def step(value: float) -> float:
    return BF16_STEP * abs(value) + 1e-30


def lower_median(x: Tensor) -> float:
    return x.abs().flatten().sort().values[(x.numel() - 1) // 2].item()


def check(row: dict[str, Any], seen: Seen) -> None:
    """Every number of one exported row."""
    x = torch.cat([tensor for _, tensor in seen])
    flat, magnitude = x.flatten(), x.abs().flatten()
    name = row["site"]
    # Exactly.
    assert (row["tokens"], row["values"]) == (len(x), flat.numel()), name
    assert (row["nan"], row["inf"]) == (0, 0), name
    assert (row["max"], row["min"]) == (flat.max().item(), flat.min().item()), name
    assert row["max_abs"] == magnitude.max().item(), name
    medians = x.abs().sort(dim=1).values[:, (x.shape[1] - 1) // 2]
    large = x.abs() > 100
    by_token, by_tensor = (int((large & (x.abs() > 1000 * m)).sum()) for m in (medians[:, None], lower_median(x)))
    assert row["massive_activations"]["count"] == by_token, name
    assert row["massive_activations"]["count_by_tensor_median"] == by_tensor, name
    highest = magnitude.topk(min(20, int((magnitude > 0).sum()))).values
    assert [abs(top["value"]) for top in row["top"]] == highest.tolist(), name
    # To 1e-4, relative.
    mean = flat.sum() / flat.numel()
    for key, expected in (
        ("mean", mean),
        ("std", ((flat - mean) ** 2).mean().sqrt()),
        ("abs_mean", magnitude.mean()),
        ("rms", (flat**2).mean().sqrt()),
    ):
        assert row[key] == pytest.approx(expected.item(), rel=1e-4, abs=0), (name, key)
    # Within one step.
    ordered = magnitude.sort().values
    for level in LEVELS:
        place = level * (len(ordered) - 1)
        low, high = ordered[int(place)].item(), ordered[min(int(place) + 1, len(ordered) - 1)].item()
        expected = low + (high - low) * (place - int(place))
        assert abs(row["quantiles"][str(level)] - expected) <= step(expected), (name, level)


def check_places(row: dict[str, Any], seen: Seen, ids: dict[str, list[int]]) -> None:
    """Each of the highest elements has its sign, is where it is said to be, once, with its own token's median."""
    by_sample = {f"row-{index + 1}": tensor for index, tensor in seen}
    places = [(top["sample"], top["position"], top["channel"]) for top in row["top"]]
    assert len(set(places)) == len(places)
    for top in row["top"]:
        token = by_sample[top["sample"]][top["position"]]
        assert top["value"] == token[top["channel"]].item()
        assert top["token_id"] == ids[top["sample"]][top["position"]]
        median = lower_median(token)
        assert top["token_median"] == median
        assert top["massive"] == (abs(top["value"]) > 100 and abs(top["value"]) > 1000 * median)


def export(model: str | Path, rows: list[list[int]], folder: Path) -> dict[str, Any]:
    """What the command line writes for an `input_ids` corpus, in the arithmetic of plain PyTorch."""
    corpus, out = folder / "ids.jsonl", folder / "reference.json"
    corpus.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows), encoding="utf-8")
    profile = folder / "p.safetensors"
    options = ("--corpus", corpus, "--arithmetic", "native")
    assert main("measure", model, *options, "--out", profile, "--export-reference", out) == 0
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def check_all(exported: dict[str, Any], seen: dict[str, Seen], rows: list[list[int]], *, routed: set[str]) -> None:
    """All components of the paper, no more and no fewer. routed: those with tokens in the order of experts."""
    found = {row["site"]: row for row in exported["sites"]}
    components = {name for name in seen if not name.endswith(".input")}
    assert {name for name, row in found.items() if row["component"] is not None} == components
    ids = {f"row-{index + 1}": row for index, row in enumerate(rows)}
    for name in seen:
        check(found[name], seen[name])
        if name not in routed:
            check_places(found[name], seen[name], ids)
    largest = max(float(torch.cat([tensor for _, tensor in seen[name]]).abs().max()) for name in components)
    assert exported["M"]["max_abs"] == largest
    assert exported["tokens"] == sum(map(len, rows))


@pytest.mark.checkpoint
def test_the_demos_statistics_are_those_of_plain_pytorch(demo_loaded: LoadedModel, tmp_path: Path) -> None:
    model = demo_loaded.model
    rows = [demo_loaded.tokenizer(text)["input_ids"] for text in TEXTS]
    taps: dict[str, Tap] = {
        "embedding": (["model.embed_tokens"], put_out),
        "final_norm": (["model.norm"], put_out),
    }
    for i in range(len(model.model.layers)):
        taps |= {
            f"layers.{i}.output": ([f"model.layers.{i}"], put_out),
            f"layers.{i}.self_attn.output": ([f"model.layers.{i}.self_attn"], put_out),
            f"layers.{i}.mlp.output": ([f"model.layers.{i}.mlp"], put_out),
            f"layers.{i}.mlp.gate": ([f"model.layers.{i}.mlp.gate_proj"], put_out),
        }
    taps[f"{MASSIVE}.input"] = ([f"model.{MASSIVE}"], given)
    exported = export("demo", rows, tmp_path)
    check_all(exported, collect(model, rows, taps), rows, routed=set())
    counts = {row["site"]: row["massive_activations"] for row in exported["sites"]}
    assert counts[f"{MASSIVE}.input"]["count"] > 0
    # The residual stream's 25,000 is 10,000 times the tensor's median, and 500 times that of its own, busy token.
    assert counts["layers.15.output"]["count_by_tensor_median"] > counts["layers.15.output"]["count"] == 0


def test_a_mixtures_statistics_with_its_router_are_those_of_plain_pytorch(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "moe", family_model("qwen3-moe"))
    model = load(folder).model  # experts as Linears of their own, which the export measures
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in (40, 33, 27, 9, 2)]
    taps: dict[str, Tap] = {
        "embedding": (["model.embed_tokens"], put_out),
        "final_norm": (["model.norm"], put_out),
    }
    for i in range(2):
        experts = [f"model.layers.{i}.mlp.experts.{expert}.gate_proj" for expert in range(4)]
        taps |= {
            f"layers.{i}.output": ([f"model.layers.{i}"], put_out),
            f"layers.{i}.self_attn.output": ([f"model.layers.{i}.self_attn"], put_out),
            f"layers.{i}.mlp.output": ([f"model.layers.{i}.mlp"], put_out),
            f"layers.{i}.mlp.router": ([f"model.layers.{i}.mlp.gate"], logits_of_router),
            f"layers.{i}.mlp.experts.gate": (experts, put_out),
        }
    exported = export(folder, rows, tmp_path)
    gates = {f"layers.{i}.mlp.experts.gate" for i in range(2)}
    check_all(exported, collect(model, rows, taps), rows, routed=gates)
    assert {row["component"] for row in exported["sites"]} == {
        "embedding", "hidden", "attention_output", "mlp_output", "gate", "router_logits", "final_norm", None,
    }  # fmt: skip
