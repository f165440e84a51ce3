"""The real thing: llm-compressor runs a recipe on our own calibration samples, saves, and the result is read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from compressed_tensors.utils import patch_attr
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from quantaudit.common.logs import stdout_to_stderr, without_library_logs
from quantaudit.common.outputs.scratch import scratch_folder
from quantaudit.conform.artifacts.tensors import Tensors
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import ModelError, OutputError, RecipeError
from quantaudit.model.forward.arithmetic import arithmetic_now, computed_in
from quantaudit.model.forward.attention import GivenMasks
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.quant.observers import QParams
from quantaudit.recipe.parse import read_recipe
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.verify.rotations import attach_rotations

Pipeline = Literal["basic", "sequential", "independent"]
"""llm-compressor's calibration pipelines, but for the one that has no data."""
PARAMETERS = ("scale", "zero_point", "global_scale")
"""What quantization saves in addition to a weight, after `input_` or `weight_`."""


def run_oneshot(
    loaded: LoadedModel,
    recipe: Path,
    samples: Sequence[TokenizedSample],
    folder: Path,
    *,
    pipeline: Pipeline = "independent",
) -> list[str]:
    """Quantize a loaded model by a recipe, in place, and save it with its tokenizer as a compressed checkpoint.

    samples: calibration batches of one sample each, in this order; llm-compressor would shuffle or sort its own.
    pipeline: `basic` runs the model as a whole, once for every modifier, so that each sees what those before have made
    of the model; `sequential` traces it and runs it layer by layer, for all modifiers at once; `independent`,
    llm-compressor's default, does so for one after the other. All force eager attention.
    Returns the decoder layers that ran without a causal mask. Raises RecipeError where llm-compressor refuses the
    recipe or fails on it.
    """
    with stdout_to_stderr():
        from llmcompressor import active_session, oneshot

    model: Any = loaded.model
    masks = GivenMasks(model, discover(model))
    several = pipeline == "basic" and len(read_recipe(recipe).modifiers) > 1
    each = _whole_model_for_each() if several else nullcontext(pipeline)
    # Weights are written through `.data` here: no copies of them may be kept.
    products = computed_in(arithmetic_now(model), model, weight_bytes=0)
    with stdout_to_stderr(), without_library_logs(), _described(model), masks.watched(), products, each as chosen:
        try:
            oneshot(
                model=model,
                processor=loaded.tokenizer,
                recipe=str(recipe),
                dataset=calibration_batches(samples, next(model.parameters()).device),
                pipeline=chosen,
            )
            model.save_pretrained(folder, save_compressed=True)
        except SafetensorError as error:
            raise OutputError(
                f"cannot be written: {error}", where=str(folder), hint="choose another place with --save"
            ) from error
        except (ValueError, RuntimeError, KeyError, AttributeError, TypeError, AssertionError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise RecipeError(
                f"llm-compressor cannot run it on this model: {reason}",
                where=str(recipe),
                hint="see `quantaudit gate` for what is wrong with the recipe"
                + (
                    ""
                    if pipeline == "sequential"
                    else "; some modifiers, such as AutoRound, need --pipeline sequential"
                ),
            ) from error
        finally:
            # The session is global, and would keep the model, and its data, until the next one.
            active_session().reset()
    loaded.tokenizer.save_pretrained(folder)
    return masks.absent


def calibration_batches(samples: Sequence[TokenizedSample], device: torch.device) -> DataLoader[dict[str, Tensor]]:
    """One batch for each sample, in order, as llm-compressor takes them from a DataLoader of the caller's own."""
    rows: Any = [{"input_ids": torch.from_numpy(sample.ids)[None].to(device)} for sample in samples]
    return DataLoader(rows, batch_size=None, shuffle=False)


def load_saved(
    folder: Path, device: torch.device, *, dtype: str = "auto", trust_remote_code: bool = False
) -> nn.Module:
    """The saved checkpoint as transformers loads it, weights decompressed, with its rotations. dtype: `auto` as stored.

    Raises ModelError, also where transformers leaves saved tensors unread: it merges experts that were saved one by
    one, and with them neither the scales of INT8 and FP8 nor the global scales of NVFP4.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    model: Any
    try:
        with stdout_to_stderr(), without_library_logs():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                quantization_config=CompressedTensorsConfig(dequantize=True),
                output_loading_info=True,
            )
            attach_rotations(model, folder)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        # transformers refers to a table that it printed.
        what = "it fails to convert the saved tensors" if "report" in str(error) else str(error).strip()
        raise _not_loaded(folder, what) from error
    unread = sorted({*report["missing_keys"], *(key for key in report["unexpected_keys"] if _of_weight(key))})
    if unread:
        raise _not_loaded(folder, f"it does not read {len(unread):,} of its tensors, such as `{unread[0]}`")
    loaded: nn.Module = model.eval().to(device)
    return loaded


def _of_weight(key: str) -> bool:
    """Whether a tensor is part of a quantized weight; matrices of rotations are not, and are attached afterwards."""
    leaf = key.rpartition(".")[2]
    return leaf.startswith("weight_") or leaf == "input_global_scale" or (leaf == "weight" and ".experts." in key)


def _not_loaded(folder: Path, what: str) -> ModelError:
    import transformers

    return ModelError(
        f"transformers {transformers.__version__} cannot load the quantized checkpoint: {what}",
        where=str(folder),
        hint="the checkpoint may be sound: keep it with --save, check it with `quantaudit conform`, and run it in an "
        "engine that reads experts one by one, such as vLLM",
    )


def saved_parameters(folder: Path) -> dict[str, Tensor]:
    """Every saved scale, zero point and global scale by its full name (`<module>.input_scale`).

    Raises ModelError where there are no safetensors.
    """
    tensors = Tensors(folder)
    return {name: tensors.tensor(name) for name in tensors if _parameter(name)}


def saved_inputs(parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module path → what is saved about its input: `scale`, `zero_point`, `global_scale`, as far as they are."""
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, value in parameters.items():
        module, _, kind = name.rpartition(".")
        if kind.startswith("input_"):
            by_module.setdefault(module, {})[kind.removeprefix("input_")] = value
    return by_module


def with_saved_ranges(plan: Plan, parameters: Mapping[str, Tensor]) -> Plan:
    """The plan with what was saved about inputs in place of what a profile predicted.

    Raises ModelError where a module of the plan has no saved scale although its scheme is static.
    """
    saved = saved_inputs(parameters)
    qparams: dict[str, QParams | None] = {}
    distinct: dict[tuple[str, ...], QParams] = {}
    for path, scheme in plan.schemes.items():
        if not scheme.static:
            continue
        if path not in saved:
            raise ModelError("no input scale was saved", where=path, hint="compare with the recipe that made it")
        # Equal parameters are one object: modules that read one tensor then share its quantized form.
        key = tuple(str(value.float().tolist()) for _, value in sorted(saved[path].items()))
        qparams[path] = distinct.setdefault(key, _qparams(saved[path]))
    return replace(plan, qparams=qparams)


def _qparams(saved: Mapping[str, Tensor]) -> QParams:
    nan, none = float("nan"), torch.empty(0)
    scale = saved.get("scale", none)
    return QParams(
        min=nan,
        max=nan,
        scale=scale,
        zero_point=saved.get("zero_point", torch.zeros_like(scale, dtype=torch.int8)),
        global_scale=saved.get("global_scale"),
    )


def _parameter(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return any(leaf == f"{tensor}_{kind}" for tensor in ("input", "weight") for kind in PARAMETERS)


@contextmanager
def _whole_model_for_each() -> Iterator[str]:
    """Within the context the pipeline of this name gives every modifier a pass of its own over the whole model.

    llm-compressor's `basic` gives them one together: input scales are then of what SmoothQuant has not yet smoothed.
    """
    from llmcompressor.pipelines.registry import CalibrationPipeline

    with patch_attr(CalibrationPipeline, "_infer_pipeline", staticmethod(lambda modifiers: "basic")):
        yield "independent"


@contextmanager
def _described(model: Any) -> Iterator[None]:
    """Within the context the model names a folder with its configuration, which llm-compressor looks at on disk.

    A model that was dequantized on loading (GGUF) would refuse to be saved, and be refused by llm-compressor; and its
    configuration does not name its class, which llm-compressor would save as it is.
    """
    config = model.config
    config.architectures = config.architectures or [type(model).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
    original = config._name_or_path
    with scratch_folder() as folder:
        config.save_pretrained(folder)
        config._name_or_path = str(folder)
        try:
            yield
        finally:
            config._name_or_path = original
