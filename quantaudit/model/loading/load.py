"""From a checkpoint on disk to a model ready to run, with everything about it that a card must name."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    FineGrainedFP8Config,
    Mxfp4Config,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from quantaudit.common.logs import compiled_prints_aside
from quantaudit.common.ranks.team import team
from quantaudit.common.timing import timed
from quantaudit.errors import ModelError, UsageError
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.checkpoint_blocks import leave_blocks_out
from quantaudit.model.blockwise.memory import give_back
from quantaudit.model.blockwise.offload import offload_blocks
from quantaudit.model.declared import check_declared, check_files, no_more_than_stored
from quantaudit.model.experts import linearize
from quantaudit.model.loading.checkpoint import Checkpoint, check_loaded, file_states, without_adapter
from quantaudit.model.loading.classes import auto_class, class_doubts
from quantaudit.model.loading.info import describe
from quantaudit.model.loading.mixed_precision import reconcile_dtypes
from quantaudit.model.loading.stored_tensors import (
    Stored,
    check_quantized_storage,
    head_doubts,
    judge_unused,
    stored_tensors,
    watch_files,
    watch_unused,
)
from quantaudit.model.loading.weight_files import AGAIN, CUT_SHORT
from quantaudit.model.loading.weights import OddWeights, odd_weights
from quantaudit.model.sites import Architecture, discover
from quantaudit.model.tokenizer_files import load_problem
from quantaudit.provenance import Doubt, ModelInfo


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode on its device, its tokenizer, and its provenance.

    Its structure stays what it is: whoever replaces modules makes a `LoadedModel` of its own (`dataclasses.replace`).
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    weights: BlockWeights | None = None
    """Of its decoder blocks, where they are read from disk one at a time; None where all are in memory."""
    runs_whole: str | None = None
    """Why they are in memory, where they were to be left on disk."""

    @property
    def device(self) -> torch.device:
        """Where the forward passes run."""
        return next(self.model.parameters()).device

    @cached_property
    def architecture(self) -> Architecture:
        """Sites, fused groups and lists of experts of the model, with experts on the tokens routed to them.

        Raises ModelError where no decoder layers are found.
        """
        return discover(self.model, model_name=self.info.name)

    @cached_property
    def architecture_on_all_tokens(self) -> Architecture:
        """The same with the inputs of experts over all tokens too, as they are observed where experts run on all."""
        return discover(self.model, all_tokens=True, model_name=self.info.name)


def parse_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one, else CPU), or any device torch can use here. Raises UsageError.

    Ranks of one machine that ask for no number have one device each, by their local rank.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type != "cpu" and device.index is None and team().local_size > 1:
            device = torch.device(device.type, team().local_rank)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(" device type at start")[0]
        raise UsageError(
            "no such device" if reason.startswith("Expected one of") else f"device is not available here: {reason}",
            where=f"--device {name}",
            hint="use auto, cpu, or an accelerator that this build of torch supports, such as cuda",
        ) from error
    if device.type == "meta":
        raise UsageError("the meta device holds no values", where="--device meta", hint="use auto, cpu or cuda")
    return device


def load_config(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The checkpoint's configuration, without its weights. Raises ModelError."""
    with (
        explained(checkpoint, "configuration", trust_remote_code=trust_remote_code),
        _gguf_parsed_once(checkpoint),
        timed("configuration"),
    ):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code, **_gguf_argument(checkpoint)
        )
        check_declared(config.to_dict(), str(checkpoint.folder / (checkpoint.gguf or "config.json")))
        return config


def load_skeleton(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> nn.Module:
    """The model's modules on the meta device: shapes and names without weights. Raises ModelError."""
    config = load_config(checkpoint, trust_remote_code=trust_remote_code)
    with explained(checkpoint, "architecture", trust_remote_code=trust_remote_code), torch.device("meta"):
        auto = auto_class(config, where=str(checkpoint.folder))
        model: nn.Module = auto.from_config(config, trust_remote_code=trust_remote_code)
    linearize(model)
    return model


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    by_block: bool = False,
) -> LoadedModel:
    """Load weights and tokenizer. dtype `auto` is the checkpoint's own; a quantized GGUF is dequantized to bfloat16.

    by_block: leave the weights of decoder blocks on disk, and read each of them when it is called; a model that cannot
    run so is loaded whole. Raises ModelError when anything is missing, broken, or would be left at random values.
    """
    with _gguf_parsed_once(checkpoint):
        return _load_model(checkpoint, device, dtype, trust_remote_code, by_block)


def _load_model(
    checkpoint: Checkpoint, device: torch.device, dtype: str, trust_remote_code: bool, by_block: bool
) -> LoadedModel:
    quiet()
    stored = stored_tensors(checkpoint)
    check_quantized_storage(checkpoint, stored)
    dtype, notes = _weights_as(checkpoint, dtype)
    # Before the tokenizer, whose loader reads the configuration too and would be blamed for what is wrong with it.
    config = load_config(checkpoint, trust_remote_code=trust_remote_code)
    # A GGUF holds a language model only.
    auto: Any = AutoModelForCausalLM if checkpoint.gguf else auto_class(config, where=str(checkpoint.folder))
    tokenizer = tokenizer_of(checkpoint, trust_remote_code=trust_remote_code)
    with (
        explained(checkpoint, "weights", trust_remote_code=trust_remote_code),
        timed("weights"),
        without_adapter(checkpoint) as folder,
        no_more_than_stored(sum(path.stat().st_size for path in checkpoint.weights), str(checkpoint.folder)),
        watch_unused() as unused,
        watch_files() as loaded,
        leave_blocks_out(checkpoint, wanted=by_block) as left_out,
    ):
        before = file_states(checkpoint)
        model, report = auto.from_pretrained(
            folder,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=None if checkpoint.gguf else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the names that transformers would only log
            **_gguf_argument(checkpoint),
            **_dequantization(checkpoint),
        )
    check_loaded(checkpoint, loaded, before)
    _refuse_incomplete(checkpoint, report)
    with timed("reading blocks"):
        offloaded = None if left_out.blocks is None else offload_blocks(model, left_out.blocks, device)
    odd = odd_weights(model) if offloaded is None else offloaded.odd
    more, doubts = _compare(checkpoint, model, unused, stored, odd)
    notes += more
    with timed("linearizing experts"):
        linearization = linearize(model) if offloaded is None else offloaded.linearization
        notes += linearization.notes
        if linearization.split:
            give_back()  # what they were made of came in pieces too small to go by themselves
    if transposed := sum(isinstance(module, Conv1D) for module in model.modules()):
        notes.append(f"{transposed} projections are Conv1D: measured like Linears, passed by when a recipe says Linear")
    with timed(f"moving to {device}"):
        _move(model.eval(), device, whole=offloaded is None)
        notes += reconcile_dtypes(model)
    with timed("hashing"):
        info = describe(
            checkpoint,
            model,
            tokenizer,
            notes,
            doubts,
            split_wrongly=linearization.wrong,
            weights=None if offloaded is None else offloaded.sketches,
        )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        info=info,
        weights=None if offloaded is None else offloaded.weights,
        runs_whole=left_out.why_not,
    )


def _move(model: Any, device: torch.device, *, whole: bool) -> None:
    """Move a model to a device, or what is in memory of it."""
    if whole:
        model.to(device)
    else:
        model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


def _weights_as(checkpoint: Checkpoint, dtype: str) -> tuple[str, list[str]]:
    """The dtype to load in, and notes on what loading does to the weights."""
    notes = []
    if checkpoint.gguf and dtype == "auto":
        dtype = "bfloat16"
        notes.append("GGUF weights dequantized to bfloat16")
    if checkpoint.quantization:
        dtype = "bfloat16" if dtype == "auto" else dtype
        notes.append(
            f"weights were quantized already ({checkpoint.quantization}) and are dequantized to {dtype}: "
            "activations are those of the dequantized weights"
        )
    if checkpoint.adapter:
        notes.append(f"an adapter lies in the folder ({checkpoint.adapter}) and takes no part")
    return dtype, notes


def _refuse_incomplete(checkpoint: Checkpoint, report: Mapping[str, Any]) -> None:
    """That every weight of the model was stored, in its shape. Raises ModelError."""
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"checkpoint lacks {len(missing)} weights, which would be random: {', '.join(missing[:3])}",
            where=str(checkpoint.folder),
            hint="give a complete checkpoint of a causal language model",
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, configured = mismatched[0]
        raise ModelError(
            f"{len(mismatched)} weights have another shape than its configuration says: "
            f"{name} is {list(stored)}, not {list(configured)}",
            where=str(checkpoint.folder),
            hint="give the config.json that belongs to these weights",
        )


def _compare(
    checkpoint: Checkpoint, model: Any, unused: Collection[str], stored: Mapping[str, Stored], odd: OddWeights
) -> tuple[list[str], list[Doubt]]:
    """Notes and doubts from what was loaded next to what is stored, before experts are split into Linears."""
    notes, doubts = judge_unused(checkpoint, model, unused, stored)
    if not checkpoint.gguf:
        doubts += class_doubts(model.config, model) + head_doubts(model, stored)
    return notes, doubts + odd.doubts


def tokenizer_of(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer. Raises ModelError."""
    named = explained(checkpoint, "tokenizer", trust_remote_code=trust_remote_code)
    with named, timed("tokenizer"), compiled_prints_aside():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code, **_gguf_argument(checkpoint)
        )
        _check_longest(tokenizer)
        return tokenizer


def load_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """A tokenizer alone, from a folder or the Hub. Raises ModelError."""
    quiet()
    if Path(place).is_dir():
        check_files(Path(place))
    try:
        with compiled_prints_aside():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
        _check_longest(tokenizer)
    except Exception as error:  # parsers of other people's files raise whatever they like
        raise ModelError(
            f"tokenizer cannot be loaded: {load_problem(Path(place), error) or _reason(error)}",
            where=f"--corpus-tokenizer {place}",
            hint="give a folder with a tokenizer, or a Hub id that can be reached",
        ) from error
    return tokenizer


def _check_longest(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError where the longest text is no number: it is compared with every text."""
    longest: Any = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float):
        raise ValueError(f"model_max_length is {str(longest)[:60]!r}, not a number of tokens")


def _gguf_parsed_once(checkpoint: Checkpoint) -> contextlib.AbstractContextManager[None]:
    if not checkpoint.gguf:
        return contextlib.nullcontext()
    from quantaudit.model.loading.gguf import parsed_once

    return parsed_once()


def _gguf_argument(checkpoint: Checkpoint) -> dict[str, str]:
    return {"gguf_file": checkpoint.gguf} if checkpoint.gguf else {}


def _dequantization(checkpoint: Checkpoint) -> dict[str, Any]:
    configs = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    if checkpoint.quantization is None:
        return {}
    return {"quantization_config": configs[checkpoint.quantization](dequantize=True)}


@contextlib.contextmanager
def explained(checkpoint: Checkpoint, part: str, *, trust_remote_code: bool = False) -> Iterator[None]:
    """Turn whatever a loader raises into one line that names the checkpoint and the part that failed.

    A checkpoint of this machine asks the Hub for nothing meanwhile, as some configurations would; but for code that is
    trusted, which may lie in another repository.
    """
    try:
        with _offline(checkpoint.local and not trust_remote_code):
            yield
    except ModelError:
        raise
    except Exception as error:  # parsers of other people's files raise whatever they like
        hint = "give a complete causal language model that transformers can load"
        if part == "tokenizer":
            hint = "give a folder that holds the model's tokenizer too (tokenizer.json)"
        if checkpoint.gguf:
            hint = "download the file again; if it is whole, transformers cannot read its kind: give the safetensors"
        reason = _reason(error)
        if part == "tokenizer" and not checkpoint.gguf:
            reason = load_problem(checkpoint.folder, error) or reason
        if "trust_remote_code" in str(error):
            reason, hint = "its code is not part of transformers", "if you trust its author, add --trust-remote-code"
        place = checkpoint.folder / checkpoint.gguf if checkpoint.gguf else checkpoint.folder
        if checkpoint.gguf and isinstance(error, struct.error):  # transformers reads its head by itself
            raise ModelError(CUT_SHORT, where=str(place), hint=AGAIN) from error
        raise ModelError(f"{part} cannot be loaded: {reason}", where=str(place), hint=hint) from error


@contextlib.contextmanager
def _offline(offline: bool) -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reason(error: Exception) -> str:
    """The first line that says something; where it ends in a colon, with the one that it announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
