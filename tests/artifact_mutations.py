"""Artifacts of every preset in memory, and every way of damaging one tensor or one field of the configuration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from safetensors.torch import load_file
from torch import Tensor

from quantaudit.card.build import build_card
from quantaudit.card.schema import Card
from quantaudit.conform.artifacts import compressed
from quantaudit.conform.artifacts.compressed import compressed_artifact
from quantaudit.conform.artifacts.read import quantization_of
from quantaudit.conform.artifacts.records import QuantizedModule
from quantaudit.conform.artifacts.refusals import refuse_sparse, refuse_unknown
from quantaudit.conform.artifacts.tensors import read_json
from quantaudit.conform.contents import dense_contents, weight_contents
from quantaudit.conform.run import Conformance, conform
from quantaudit.errors import ModelError
from quantaudit.measure.run import measure
from quantaudit.policy import Policy, load_policy
from quantaudit.simulate.tensors import scale_rows
from tests.builders import load, random_corpus, save_checkpoint
from tests.families import family_model
from tests.llm_compressor import quantize
from tests.memory_tensors import MemoryTensors
from tests.vision import TEXT, save_gemma, save_qwen

PRESETS = [name for name in PRESET_SCHEMES if name != "UNQUANTIZED"]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "initializer_range": 0.1}
"""Sizes that groups of 128 divide."""
IGNORED = "lm_head, 're:.*mlp.gate$', 're:.*visual.*', 're:.*vision.*', 're:.*multi_modal.*'"
KINDS = ("dense", "moe", "mixtral", "qwen-vl", "gemma-vl")
Tensors = dict[str, Tensor]
Config = dict[str, Any]


class Readings:
    """What conform read of tensors, for those that the next mutation leaves as they are."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[list[Tensor], Any]] = {}

    @contextmanager
    def reused(self) -> Iterator[None]:
        """While it lasts, the contents of one and the same tensors are computed once."""
        with mock.patch.multiple(compressed, weight_contents=self._weight, dense_contents=self._dense):
            yield

    def _weight(self, tensors: MemoryTensors, row: QuantizedModule) -> Any:
        held = [tensors.tensor(name) for name in tensors if name.startswith(f"{row.saved}.")]
        names = tuple(name for name in tensors if name.startswith(f"{row.saved}."))
        return self._once((repr(row), names), held, lambda: weight_contents(tensors, row))

    def _dense(self, tensors: MemoryTensors, module: str, name: str) -> Any:
        return self._once((module, name), [tensors.tensor(name)], lambda: dense_contents(tensors, module, name))

    def _once(self, what: tuple[Any, ...], held: list[Tensor], read: Callable[[], Any]) -> Any:
        key = (*what, *map(id, held))
        if key not in self._known:
            # The tensors are kept, so that no other one can have their identity.
            self._known[key] = (held, read())
        return self._known[key][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint in memory with the card of its model."""

    name: str
    tensors: Tensors
    config: Config
    card: Card
    readings: Readings = field(default_factory=Readings)

    def audit(self, tensors: Tensors | None = None, config: Config | None = None) -> Conformance:
        """What conform says of it, or of changed tensors or another configuration. Raises ModelError."""
        config = config or self.config
        settings = quantization_of(config)
        if settings is None or settings.get("quant_method") != "compressed-tensors":
            raise refuse_unknown(Path(self.name), str((settings or {}).get("quant_method")))
        refuse_sparse(Path(self.name), settings)
        held = MemoryTensors(self.tensors if tensors is None else tensors)
        artifact = compressed_artifact(held, config, settings, self.card.model.modules, self.name)
        return conform(artifact, self.card, _policy())


@cache
def _policy() -> Policy:
    return load_policy()


def recipe(preset: str) -> str:
    return (
        "quant_stage:\n  quant_modifiers:\n    QuantizationModifier:\n"
        f"      targets: [Linear]\n      scheme: {preset}\n      ignore: [{IGNORED}]\n"
    )


def model_folder(kind: str, folder: Path) -> Path:
    """A tiny checkpoint: `dense` with biases, `moe`, `mixtral`, `qwen-vl` or `gemma-vl`, of sizes that 128 divides."""
    if kind in ("qwen-vl", "gemma-vl"):
        with _Changed(TEXT, {**WIDE, "head_dim": 16, "num_attention_heads": 8}):
            return save_qwen(folder) if kind == "qwen-vl" else save_gemma(folder)
    families = {"dense": "qwen2.5", "moe": "qwen3-moe", "mixtral": "mixtral"}
    more = {"moe_intermediate_size": 128} if kind == "moe" else {}
    sizes = {**WIDE, "head_dim": None} if kind == "dense" else WIDE
    model = family_model(families[kind], **sizes, **more)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator).mul(0.1))
            elif "norm" in name:
                parameter.mul_(torch.rand(parameter.shape, generator=generator).mul(0.2).add(1))
    return save_checkpoint(folder, model)


def subject(kind: str, preset: str, source: Path, card: Card, folder: Path, text: str | None = None) -> Subject:
    """What llm-compressor makes of a checkpoint by a preset, saved and read back."""
    import transformers

    vision = kind.endswith("-vl")
    auto: Any = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(source, dtype="auto", attn_implementation="eager").eval()
    options = {"processor": transformers.AutoTokenizer.from_pretrained(source)} if vision else {}
    samples = list(random_corpus([40, 33, 29, 24, 20]).samples)
    quantize(model, text or recipe(preset), samples, pipeline="basic", **options)
    model.save_pretrained(folder, save_compressed=True)
    config = read_json(folder / "config.json")
    return Subject(name=f"{kind} {preset}", tensors=load_file(folder / "model.safetensors"), config=config, card=card)


def card_of(source: Path) -> Card:
    """The card of a checkpoint, without a simulation."""
    loaded = load(source)
    loaded.model.set_attn_implementation("eager")
    profile = measure(loaded, random_corpus([40, 33, 29, 24, 20]))
    return build_card(profile, scale_rows(profile), None, load_policy(), timings={})


class _Changed:
    """Within the context a mapping has other entries."""

    def __init__(self, mapping: dict[str, Any], entries: Mapping[str, Any]) -> None:
        self._mapping, self._entries, self._before = mapping, entries, dict(mapping)

    def __enter__(self) -> None:
        self._mapping.update(self._entries)

    def __exit__(self, *_: object) -> None:
        self._mapping.clear()
        self._mapping.update(self._before)


# Tensors --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One change. what: in words; tensors, config: what it makes of them."""

    what: str
    tensors: Callable[[Tensors], Tensors] | None = None
    config: Callable[[Config], Config] | None = None


def tensor_mutations(tensors: Tensors) -> Iterator[Mutation]:
    """Every tensor dropped, renamed, cut, transposed, retyped, zeroed, made constant, inverted and poisoned."""
    for name, tensor in tensors.items():
        yield Mutation(what=f"drop {name}", tensors=lambda held, n=name: {k: v for k, v in held.items() if k != n})  # type: ignore[misc]
        yield Mutation(
            what=f"rename {name}",
            tensors=lambda held, n=name: {f"{k}_old" if k == n else k: v for k, v in held.items()},  # type: ignore[misc]
        )
        for verb, changed in variants(name, tensor):
            same = changed.dtype == tensor.dtype and changed.shape == tensor.shape
            if same and torch.equal(changed.view(torch.uint8), tensor.view(torch.uint8)):
                continue
            yield Mutation(what=f"{verb} {name}", tensors=lambda held, n=name, t=changed: {**held, n: t})  # type: ignore[misc]


def variants(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Damaged forms of a tensor; those that a dtype cannot express are left out."""
    exponents = tensor.dtype is torch.uint8 and tensor.ndim == 2 and bool((tensor > 64).all())
    yield "cut", tensor[: len(tensor) // 2].clone()
    if tensor.ndim == 2:
        yield "cut columns of", tensor[:, : tensor.shape[1] // 2].clone()
        yield "transpose", tensor.t().contiguous()
    yield "retype", _retyped(tensor)
    yield "zero", torch.zeros_like(tensor)
    flat = tensor.flatten()
    yield "level", flat[:1].expand_as(flat).reshape(tensor.shape).clone()
    if tensor.is_floating_point():
        # Scales are saved as their inverse by mistake; codes and norms are not.
        if name.endswith("_scale"):
            yield "invert", (1 / tensor.float()).to(tensor.dtype)
        yield "poison", _planted(tensor, float("nan"))
        if tensor.dtype is not torch.float8_e4m3fn:
            yield "overflow", _planted(tensor, float("inf"))
    elif exponents:
        yield "invert", 254 - tensor
        yield "poison", _planted(tensor, 255)


def _planted(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[len(changed.view(-1)) // 2] = value
    return changed


def _retyped(tensor: Tensor) -> Tensor:
    others = {
        torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float8_e4m3fn: torch.int8,
        torch.int8: torch.float8_e4m3fn, torch.uint8: torch.int8, torch.int32: torch.float32,
        torch.int64: torch.float64,
    }  # fmt: skip
    return tensor.view(others[tensor.dtype])


# Configuration --------------------------------------------------------------------------------------------------------

_FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized")
_CACHE = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


def config_mutations(config: Config) -> Iterator[Mutation]:
    """Every field of the quantization that decides what is computed, given other values in turn."""
    settings = config["quantization_config"]
    yield _set(("quant_method",), "gptq")
    yield _set(("quantization_status",), "frozen")
    yield _set(("ignore",), [])
    yield _set(("ignore",), [*settings["ignore"], "re:.*down_proj$"])
    yield _set(("kv_cache_scheme",), _CACHE)
    yield _set(("sparsity_config",), {"format": "sparse-24-bitmask"})
    for format in _FORMATS:
        if format != settings["format"]:
            yield _set(("format",), format)
    for group, scheme in settings["config_groups"].items():
        path = ("config_groups", group)
        yield _set((*path, "targets"), ["re:.*down_proj$"])
        yield _set((*path, "weights"), None)
        yield _set((*path, "output_activations"), _CACHE)
        for format in _FORMATS:
            if format != scheme["format"]:
                yield _set((*path, "format"), format)
        for part in ("weights", "input_activations"):
            if scheme[part] is not None:
                yield from (_set((*path, part, key), value) for key, value in _arguments(scheme[part]))
                if part == "input_activations":
                    yield _set((*path, part), None)


def _arguments(args: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for bits in (2, 3, 4, 5, 6, 8):
        if bits != args["num_bits"]:
            yield "num_bits", bits
    yield "type", "float" if args["type"] == "int" else "int"
    yield "symmetric", not args["symmetric"]
    yield "dynamic", not args["dynamic"]
    for strategy in ("tensor", "channel", "group", "token"):
        if strategy != args["strategy"]:
            yield "strategy", strategy
    if args["group_size"]:
        yield "group_size", args["group_size"] // 2
        yield "group_size", args["group_size"] * 2
    if args["block_structure"]:
        yield "block_structure", [64, 64]


def _set(path: tuple[str, ...], value: Any) -> Mutation:
    def change(config: Config) -> Config:
        changed = copy.deepcopy(config)
        place = changed["quantization_config"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return changed

    return Mutation(what=f"set {'.'.join(path)} to {value}", config=change)


def found(subject: Subject, mutation: Mutation, clean: set[tuple[str, str | None, str]]) -> bool:
    """Whether conform says more of the mutated artifact than of the clean one, or refuses it."""
    tensors = mutation.tensors(subject.tensors) if mutation.tensors else None
    config = mutation.config(subject.config) if mutation.config else None
    try:
        with subject.readings.reused():
            return bool(marks(subject.audit(tensors, config)) - clean)
    except ModelError:
        return True


def marks(result: Conformance) -> set[tuple[str, str | None, str]]:
    """Findings that someone should look at."""
    return {(row.code, row.module, row.message) for row in result.findings if row.severity != "info"}
