"""From settings to what every job begins with: a model on its device, its text as tokens, schemes and recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from quantaudit.card.text import counted
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import team
from quantaudit.common.timing import imports_done, timed
from quantaudit.corpus.tokens import TextReaders, TokenizedCorpus, tokenize
from quantaudit.errors import FormatError, ModelError, UsageError
from quantaudit.measure.agreement import model_differences
from quantaudit.measure.profile import Profile
from quantaudit.model.blockwise.budget import copies_bytes, fits, loaded_dtype, weight_bytes
from quantaudit.model.blockwise.memory import size_text
from quantaudit.model.experts import extra_work
from quantaudit.model.forward.arithmetic import choose_arithmetic, choose_for, computed_in, is_slow
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.model.forward.float32_products import WEIGHT_BYTES
from quantaudit.model.forward.hooks import time_first_call
from quantaudit.model.loading.checkpoint import Checkpoint, locate
from quantaudit.model.loading.input_digests import processor_digest, tokenizer_digest
from quantaudit.model.loading.load import LoadedModel, load_model, load_tokenizer, parse_device
from quantaudit.model.loading.processor import load_processor
from quantaudit.model.sites import Architecture
from quantaudit.pipeline.files import InputFiles, open_files
from quantaudit.provenance import Arithmetic, ModelInfo, SampleInfo
from quantaudit.quant.schemes import NAMED
from quantaudit.quant.standard import ChosenSchemes, Shapes, choose_schemes
from quantaudit.recipe.parse import ParsedRecipe, read_recipe
from quantaudit.recipe.resolve import resolve
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.settings import Options, Settings
from quantaudit.simulate.logits.baselines import MIXED, MIXED_BY_PROJECTION
from quantaudit.simulate.quantized.recipe_plan import check_names

Say = Callable[[str], None]
"""Takes one line about what is going on."""


def silent(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditInputs:
    """A model on its device, how its products are computed, and the text that will be run through it."""

    settings: Settings
    loaded: LoadedModel
    arithmetic: Arithmetic
    corpus: TokenizedCorpus
    chosen: ChosenSchemes
    recipes: tuple[ResolvedRecipe, ...]

    def changed(self, **options: Unpack[Options]) -> AuditInputs:
        """The same under other settings; what has been loaded is not loaded again."""
        return replace(self, settings=self.settings.changed(**options))

    @property
    def batch(self) -> BatchLimit:
        """How much runs in one forward pass while it is measured."""
        return batch_limit(self.settings)

    def computed(self) -> AbstractContextManager[None]:
        """The context that every pass of the model belongs in."""
        # Of blocks that come and go, only those of one are of use, and the others would wait in memory.
        blocks = self.loaded.weights
        kept = WEIGHT_BYTES if blocks is None else copies_bytes(blocks.largest)
        return computed_in(self.arithmetic, self.loaded.model, weight_bytes=kept)


def batch_limit(settings: Settings) -> BatchLimit:
    """How much runs in one forward pass while a model is measured under these settings."""
    return BatchLimit(settings.measure.batch_size, settings.measure.batch_tokens)


def prepare(
    settings: Settings,
    say: Say = silent,
    *,
    files: InputFiles | None = None,
    stages: Stages = silent_stages,
    memory: int | None = None,
    copies: int = 1,
    by_block: bool = False,
) -> AuditInputs:
    """Check every option and file, cheapest first, then load. files: those of the settings, where they are open.

    memory: bytes that the process may use, for jobs that can do without the whole model; beyond, its decoder blocks are
    left on disk. copies: of the weights that such a job would have at once. by_block: leave them there even where the
    weights fit, which is not said again. Raises a QuantauditError that names the cause.
    """
    imports_done()
    if torch.is_inference_mode_enabled():
        raise UsageError(
            "inside torch.inference_mode(), where nothing can be differentiated or changed in place",
            hint="use torch.no_grad(), or neither",
        )
    parse_device(settings.model.device)
    asked = choose_schemes(settings.simulate.scheme_set, settings.simulate.schemes, {})
    recipes = read_recipes(settings.simulate.recipes, [scheme.name for scheme in asked.schemes])
    files = files or open_files(settings)
    source, processor = _text_readers(files, settings, say)
    limits = _Limits(memory=memory, copies=copies, smoothing=smoothing_recipe(recipes), by_block=by_block)
    loaded = _with_processor(_in_memory(files, settings, stages, say, limits), files, processor)
    arithmetic = choose_arithmetic(settings.model.arithmetic, loaded.model)
    if arithmetic == "float32":
        say(f"products are computed in float32 and rounded to {loaded.info.dtype}")
    elif is_slow(loaded.model):
        say(f"products of {loaded.info.dtype} are slow on this processor; --arithmetic float32 is faster")
    spec = settings.corpus
    with timed("tokenizing the corpus"):
        corpus = tokenize(
            files.corpus,
            TextReaders(tokenizer=loaded.tokenizer, source=source, processor=processor),
            vocab_size=loaded.info.vocab_size,
            context_length=loaded.info.context_length,
            max_length=spec.max_length,
            samples=spec.samples,
            seed=spec.seed,
            special_tokens=spec.special_tokens,
        )
    if source is not None:
        corpus = replace(corpus, info=corpus.info.model_copy(update={"tokenizer_sha256": tokenizer_digest(source)}))
    if corpus.info.truncated:
        say(f"{counted(corpus.info.truncated, 'sample')} cut to the model's context or --max-length")
    resolved = tuple(_resolve(path, recipe, loaded) for path, recipe in recipes.items())
    time_first_call(loaded.model, "the first forward pass")
    return AuditInputs(
        settings=settings,
        loaded=loaded,
        arithmetic=arithmetic,
        corpus=corpus,
        chosen=choose_schemes(
            settings.simulate.scheme_set,
            settings.simulate.schemes,
            shapes_in_blocks(loaded.model, loaded.architecture),
        ),
        recipes=resolved,
    )


def shapes_in_blocks(model: nn.Module, architecture: Architecture) -> Shapes:
    """[out, in] of the Linears in decoder blocks."""
    members = [m for group in architecture.groups if group.layer is not None for m in group.members]
    return {member: _shape(model.get_submodule(member)) for member in members}


def _shape(linear: Any) -> tuple[int, int]:
    out, inside = linear.weight.shape
    return (out, inside) if isinstance(linear, nn.Linear) else (inside, out)


def load_again(settings: Settings, measured: ModelInfo) -> LoadedModel:
    """The model from its checkpoint, where the one in memory has been changed.

    Raises ModelError where the checkpoint is no longer the one that was measured.
    """
    loaded = _load(locate(settings.model.model, revision=settings.model.revision), settings)
    if differences := model_differences(measured, loaded.info, ()):
        raise ModelError(
            f"checkpoint changed while this ran: {'; '.join(differences)}",
            where=settings.model.model,
            hint="run the command again",
        )
    return loaded


def _load(checkpoint: Checkpoint, settings: Settings, *, by_block: bool = False) -> LoadedModel:
    return load_model(
        checkpoint,
        device=parse_device(settings.model.device),
        dtype=settings.model.dtype,
        trust_remote_code=settings.model.trust_remote_code,
        by_block=by_block,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """What decides whether blocks are left on disk. memory: bytes for the process, None for no limit; copies: of the
    weights at once; smoothing: a recipe that needs the whole model; by_block: whether that is decided.
    """

    memory: int | None
    copies: int
    smoothing: str | None
    by_block: bool


def _is_wide(checkpoint: Checkpoint, settings: Settings) -> bool:
    """Whether products of a model that is not loaded yet will be computed in float32."""
    dtype, device = loaded_dtype(checkpoint, settings.model.dtype), parse_device(settings.model.device)
    return choose_for(settings.model.arithmetic, dtype, device) == "float32"


def _in_memory(files: InputFiles, settings: Settings, stages: Stages, say: Say, limits: _Limits) -> LoadedModel:
    if isinstance(files.model, LoadedModel):
        return files.model
    stages(f"loading {files.model.name}", 0)
    memory = limits.memory
    weights = 0 if memory is None else weight_bytes(files.model, settings.model.dtype)
    whole = memory is None or fits(weights, memory, copies=limits.copies, wide=_is_wide(files.model, settings))
    whole = whole and not limits.by_block
    if team().combined(whole, all) or memory is None:  # all ranks run it one way
        return _load(files.model, settings)
    loaded = _load(files.model, settings, by_block=limits.smoothing is None)
    sizes = f"{size_text(weights)} of weights do not fit into {size_text(memory)} of memory"
    if limits.copies > 1:
        sizes = f"{size_text(weights)} of weights, and what is quantized of them, do not fit into {size_text(memory)}"
    if loaded.weights is None:
        sizes = f"{sizes}, and this model runs whole: {loaded.runs_whole or limits.smoothing}"
        if weights > memory:
            raise UsageError(
                sizes, where=files.model.name, hint="run it with more memory, or give a larger --memory-budget"
            )
        say(sizes)
    else:
        loaded.weights.budget = memory
        say(f"{sizes}: run block by block, each read from disk")
    return loaded


def smoothing_recipe(recipes: Mapping[Path, ParsedRecipe]) -> str | None:
    """Which recipe smooths weights, for which they are all in memory; None where none does."""
    smoothing = (
        path for path, recipe in recipes.items() if any(one.name == "SmoothQuantModifier" for one in recipe.modifiers)
    )
    return next((f"{path.name} smooths it" for path in smoothing), None)


def _with_processor(loaded: LoadedModel, files: InputFiles, processor: Any) -> LoadedModel:
    """The model, whose provenance names the processor of images too where there is one."""
    if processor is None or not isinstance(files.model, Checkpoint) or loaded.info.inputs is None:
        return loaded
    inputs = loaded.info.inputs.model_copy(update={"processor": processor_digest(files.model)})
    return replace(loaded, info=loaded.info.model_copy(update={"inputs": inputs}))


def _text_readers(files: InputFiles, settings: Settings, say: Say) -> tuple[PreTrainedTokenizerBase | None, Any]:
    """The tokenizer that the corpus' ids were made with, and the model's processor of images; None where not needed.

    Raises UsageError for images and a model in memory, whose processor is not known.
    """
    name = settings.corpus.corpus_tokenizer
    source = load_tokenizer(name) if name else None
    if not any(row.pictures for row in files.corpus.rows):
        return source, None
    if not isinstance(files.model, Checkpoint):
        raise UsageError(
            "samples with images need the model's own processor",
            where=files.corpus.name,
            hint="give the model's folder or Hub id instead of a model in memory",
        )
    processor = load_processor(files.model, trust_remote_code=settings.model.trust_remote_code)
    say("samples with images run one at a time")
    return source, processor


def read_recipes(paths: tuple[Path, ...], schemes: list[str]) -> dict[Path, ParsedRecipe]:
    """Raises RecipeError for a file that is none, and UsageError where two rows would have one name."""
    if twice := check_names((path.stem for path in paths), (*schemes, *NAMED, MIXED, MIXED_BY_PROJECTION)):
        raise UsageError(
            f"two recipes or schemes would be called {twice}", where="--recipe", hint="rename one of the files"
        )
    return {path: read_recipe(path) for path in paths}


def _resolve(path: Path, recipe: ParsedRecipe, loaded: LoadedModel) -> ResolvedRecipe:
    return resolve(recipe, loaded.model).as_recipe(path.stem)


def check_profile(inputs: AuditInputs, profile: Profile) -> None:
    """Raises FormatError unless the profile was measured on this model, as it is run now, and on these samples."""
    _check_model(inputs, profile.provenance.model)
    experts, asked = profile.experts, inputs.settings.measure.experts
    asked = "routed" if asked == "auto" else asked
    # Where no experts can run on all tokens, asking for it changes nothing.
    able = experts == "all" or extra_work(inputs.loaded.model) is not None
    text, corpus = profile.provenance.corpus, inputs.corpus.info
    if experts is not None and able:
        _check_option("experts", "with --experts ", experts, asked)
    _check_option("special-tokens", "with --special-tokens ", text.special_tokens, corpus.special_tokens)
    # Older profiles have the tokenizer's name alone.
    now = corpus.tokenizer_sha256 if text.tokenizer_sha256 else None
    if (text.tokenizer, text.tokenizer_sha256) != (corpus.tokenizer, now):
        raise FormatError(
            f"profile was measured on ids of {text.tokenizer or 'the model itself'}",
            where="--profile",
            hint="give the same --corpus-tokenizer as when it was measured",
        )
    rows = profile.samples, inputs.corpus.sample_infos()
    same, other = ([_identity(row, text.redacted) for row in part] for part in rows)
    if text.sha256 != corpus.sha256 or same != other:
        raise FormatError(
            f"profile was measured on other text ({text.name})",
            where="--profile",
            hint="give the same --corpus, --samples, --max-length and --seed as when it was measured"
            + (f"; it was read at revision {text.revision}" if text.revision else ""),
        )


def _check_model(inputs: AuditInputs, measured: ModelInfo) -> None:
    """Raises FormatError where weights, or anything else that numbers depend on, are not what was measured."""
    loaded = inputs.loaded.info
    if measured.fingerprint != loaded.fingerprint:
        raise FormatError(
            f"profile was measured on other weights ({measured.name})",
            where="--profile",
            hint="measure this model, or name the one that was measured",
        )
    _check_option("dtype", "in ", measured.dtype, loaded.dtype)
    if differences := model_differences(measured, loaded, inputs.corpus.read_by):
        raise FormatError(
            f"profile was measured on the same weights ({measured.name}) with another {'; another '.join(differences)}",
            where="--profile",
            hint="give the model as it was measured, or measure again",
        )


def _check_option(option: str, how: str, measured: str, now: str) -> None:
    """Raises FormatError where a profile was measured under another value of an option."""
    if measured != now:
        model = f", and the model is loaded in {now}" if option == "dtype" else ""
        raise FormatError(
            f"profile was measured {how}{measured}{model}",
            where="--profile",
            hint=f"add --{option} {measured}, or measure again",
        )


def _identity(sample: SampleInfo, redacted: bool) -> tuple[str, str, int]:
    return "" if redacted else sample.id, sample.split, sample.tokens
