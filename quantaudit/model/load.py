"""From a checkpoint on disk to a model ready to run, with everything about it that a card must name."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING as _CAUSAL,
)
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    FineGrainedFP8Config,
    Mxfp4Config,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_torchvision_available

from quantaudit.errors import ModelError, UsageError
from quantaudit.model.checkpoint import Checkpoint, fingerprint
from quantaudit.model.experts import linearize
from quantaudit.provenance import ModelInfo, ModuleInfo
from quantaudit.timing import timed


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode on its device, its tokenizer, and its provenance."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo

    @property
    def device(self) -> torch.device:
        """Where the forward passes run."""
        return next(self.model.parameters()).device


def parse_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one, else CPU), or any device torch can use here. Raises UsageError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
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
    with _explained(checkpoint, "configuration"), _gguf_parsed_once(checkpoint), timed("configuration"):
        return AutoConfig.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code, **_gguf_argument(checkpoint)
        )


def load_skeleton(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> nn.Module:
    """The model's modules on the meta device: shapes and names without weights. Raises ModelError."""
    config = load_config(checkpoint, trust_remote_code=trust_remote_code)
    with _explained(checkpoint, "architecture"), torch.device("meta"):
        model: nn.Module = _auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    linearize(model)
    return model


def load_model(
    checkpoint: Checkpoint, *, device: torch.device, dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load weights and tokenizer. dtype `auto` is the checkpoint's own; a quantized GGUF is dequantized to bfloat16.

    Raises ModelError when anything is missing, broken, or would be left at random values.
    """
    with _gguf_parsed_once(checkpoint):
        return _load_model(checkpoint, device, dtype, trust_remote_code)


def _load_model(checkpoint: Checkpoint, device: torch.device, dtype: str, trust_remote_code: bool) -> LoadedModel:
    _quiet()
    notes: list[str] = []
    if checkpoint.gguf and dtype == "auto":
        dtype = "bfloat16"
        notes.append("GGUF weights dequantized to bfloat16")
    if checkpoint.quantization:
        dtype = "bfloat16" if dtype == "auto" else dtype
        notes.append(
            f"weights were quantized already ({checkpoint.quantization}) and are dequantized to {dtype}: "
            "activations are those of the dequantized weights"
        )
    auto: Any = AutoModelForCausalLM
    # Before the tokenizer, whose loader reads the configuration too and would be blamed for what is wrong with it.
    if not checkpoint.gguf:  # a GGUF holds a language model only
        auto = _auto_class(load_config(checkpoint, trust_remote_code=trust_remote_code))
    with _explained(checkpoint, "tokenizer"), timed("tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code, **_gguf_argument(checkpoint)
        )
    with _explained(checkpoint, "weights"), timed("weights"):
        model, report = auto.from_pretrained(
            checkpoint.folder,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=None if checkpoint.gguf else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, with the names that transformers would only log
            **_gguf_argument(checkpoint),
            **_dequantization(checkpoint),
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"checkpoint lacks {len(missing)} weights, which would be random: {', '.join(missing[:3])}",
            where=str(checkpoint.folder),
            hint="give a complete checkpoint of a causal language model",
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise ModelError(
            f"{len(mismatched)} weights have another shape than its configuration says: "
            f"{name} is {list(stored)}, not {list(wanted)}",
            where=str(checkpoint.folder),
            hint="give the config.json that belongs to these weights",
        )
    if unexpected := sorted(report["unexpected_keys"]):
        notes.append(f"{len(unexpected)} stored tensors are not used, such as {unexpected[0]}")
    with timed("linearizing experts"):
        notes += linearize(model)
    if transposed := sum(isinstance(module, Conv1D) for module in model.modules()):
        notes.append(f"{transposed} projections are Conv1D: measured like Linears, passed by when a recipe says Linear")
    with timed(f"moving to {device}"):
        model.eval().to(device)
    with timed("hashing"):
        info = describe(checkpoint, model, notes)
    return LoadedModel(model=model, tokenizer=tokenizer, info=info)


def load_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """A tokenizer alone, from a folder or the Hub. Raises ModelError."""
    _quiet()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # parsers of other people's files raise whatever they like
        raise ModelError(
            f"tokenizer cannot be loaded: {_reason(error)}",
            where=f"--corpus-tokenizer {place}",
            hint="give a folder with a tokenizer, or a Hub id that can be reached",
        ) from error
    return tokenizer


def load_processor(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """What makes images and text ready for this model, as the checkpoint defines it. Raises ModelError."""
    _quiet()
    config = load_config(checkpoint, trust_remote_code=trust_remote_code)
    if checkpoint.gguf or type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(
            "the corpus has images, and this model takes none",
            where=str(checkpoint.folder),
            hint="give a corpus of text, or the folder of a vision-language model",
        )
    if not any((checkpoint.folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise ModelError(
            "the corpus has images, and the checkpoint has no image processor (preprocessor_config.json)",
            where=str(checkpoint.folder),
            hint="give a complete checkpoint, or a corpus of text",
        )
    with _explained(checkpoint, "image processor"):
        try:
            processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
        except ImportError:
            if is_torchvision_available() or type(config) not in PROCESSOR_MAPPING:
                raise
            processor = _without_video(PROCESSOR_MAPPING[type(config)]).from_pretrained(checkpoint.folder)
    if getattr(processor, "image_processor", None) is None:
        raise ModelError("the checkpoint's processor takes no images", where=str(checkpoint.folder))
    return processor


def _without_video(processor: Any) -> Any:
    """A processor class that leaves out its video part, which alone needs torchvision; images go through Pillow."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in super(made, cls).get_attributes() if "video" not in name]

    made: Any = type(processor.__name__, (processor,), {"get_attributes": classmethod(get_attributes)})
    return made


def describe(checkpoint: Checkpoint, model: nn.Module, notes: list[str]) -> ModelInfo:
    """Provenance of a loaded model."""
    files, digest = fingerprint(checkpoint)
    return model_info(
        model,
        notes,
        spec=checkpoint.spec,
        name=checkpoint.name,
        revision=checkpoint.revision,
        files=files,
        digest=digest,
    )


def model_info(
    model: nn.Module,
    notes: list[str],
    *,
    spec: str,
    name: str,
    revision: str | None,
    files: dict[str, str],
    digest: str,
) -> ModelInfo:
    """Provenance of a model, wherever it came from. digest: what tells its weights from others."""
    config: Any = model.config
    text = config.get_text_config()
    return ModelInfo(
        spec=spec,
        name=name,
        architecture=type(model).__name__,
        model_type=config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        context_length=getattr(text, "max_position_embeddings", None),
        revision=revision,
        files=files,
        fingerprint=digest,
        config_sha256=_config_hash(config),
        notes=notes,
        modules=[_module_info(name, module) for name, module in model.named_modules() if name],
    )


def _auto_class(config: PretrainedConfig) -> Any:
    """What loads a model of this configuration: as a language model, or as one that can be given images as well."""
    only_with_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in _CAUSAL
    return AutoModelForImageTextToText if only_with_images else AutoModelForCausalLM


def _module_info(name: str, module: nn.Module) -> ModuleInfo:
    weight = getattr(module, "weight", None)
    return ModuleInfo(
        name=name,
        classes=[cls.__name__ for cls in type(module).__mro__[: type(module).__mro__.index(nn.Module) + 1]],
        weight_shape=list(weight.shape) if isinstance(weight, torch.Tensor) else None,
    )


def _config_hash(config: PretrainedConfig) -> str:
    settings = config.to_dict()
    # Where the files lie and which transformers read them is not part of the model.
    for key in ("_name_or_path", "transformers_version", "quantization_config"):
        settings.pop(key, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _gguf_parsed_once(checkpoint: Checkpoint) -> contextlib.AbstractContextManager[None]:
    if not checkpoint.gguf:
        return contextlib.nullcontext()
    from quantaudit.model.gguf import parsed_once

    return parsed_once()


def _gguf_argument(checkpoint: Checkpoint) -> dict[str, str]:
    return {"gguf_file": checkpoint.gguf} if checkpoint.gguf else {}


def _dequantization(checkpoint: Checkpoint) -> dict[str, Any]:
    configs = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    if checkpoint.quantization is None:
        return {}
    return {"quantization_config": configs[checkpoint.quantization](dequantize=True)}


@contextlib.contextmanager
def _explained(checkpoint: Checkpoint, part: str) -> Iterator[None]:
    """Turn whatever a loader raises into one line that names the checkpoint and the part that failed."""
    try:
        yield
    except Exception as error:  # parsers of other people's files raise whatever they like
        hint = "give a complete causal language model that transformers can load"
        if part == "tokenizer":
            hint = "give a folder that holds the model's tokenizer too (tokenizer.json)"
        if checkpoint.gguf:
            hint = "download the file again; if it is whole, transformers cannot read its kind: give the safetensors"
        reason = _reason(error)
        if "trust_remote_code" in str(error):
            reason, hint = "its code is not part of transformers", "if you trust its author, add --trust-remote-code"
        place = checkpoint.folder / checkpoint.gguf if checkpoint.gguf else checkpoint.folder
        raise ModelError(f"{part} cannot be loaded: {reason}", where=str(place), hint=hint) from error


def _reason(error: Exception) -> str:
    """The first line that says something; where it ends in a colon, with the one that it announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
