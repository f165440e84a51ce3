"""The whole audit as functions: checkpoint + corpus → profile → simulation → card. The command line calls these."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from quantaudit.card.build import build_card
from quantaudit.card.redact import redact, redact_simulation
from quantaudit.card.schema import Card
from quantaudit.choices import find_single
from quantaudit.corpus.tokens import TokenizedCorpus, tokenize
from quantaudit.errors import FormatError, UsageError
from quantaudit.inputs import Inputs, open_inputs
from quantaudit.measure import measure
from quantaudit.model.arithmetic import choose_arithmetic, computed_in, is_slow
from quantaudit.model.attention import eager_attention
from quantaudit.model.checkpoint import Checkpoint, locate
from quantaudit.model.experts import extra_work
from quantaudit.model.load import (
    LoadedModel,
    load_model,
    load_processor,
    load_tokenizer,
    parse_device,
)
from quantaudit.model.sites import discover
from quantaudit.policy import load_policy
from quantaudit.profile import Profile
from quantaudit.progress import Stages, silent_stages
from quantaudit.provenance import Arithmetic, SampleInfo
from quantaudit.quant.schemes import NAMED, SCHEMES, Scheme, find_scheme
from quantaudit.recipe.resolve import resolve
from quantaudit.recipe.source import ParsedRecipe, read_recipe
from quantaudit.settings import Settings, own_arithmetic, repeat
from quantaudit.shard import Shard
from quantaudit.simulate.cost import forward_passes, single_passes
from quantaudit.simulate.recipes import ResolvedRecipe, check_names
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.run import simulate
from quantaudit.simulate.standard import MIXED
from quantaudit.simulate.tensor import scale_rows
from quantaudit.timing import imports_done, time_first_call, timed

__all__ = ["Audit", "Settings", "Subject", "audit", "check_profile", "cost", "prepare", "repeat"]

EAGER_TOKENS = 4096
"""Longest sample that is measured with eager attention under `auto`; above, as the model was loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model on its device, how its products are computed, and the text that will be run through it."""

    settings: Settings
    loaded: LoadedModel
    arithmetic: Arithmetic
    corpus: TokenizedCorpus
    schemes: tuple[Scheme, ...]
    recipes: tuple[ResolvedRecipe, ...]

    def computed(self) -> AbstractContextManager[None]:
        """The context that every pass of the model belongs in."""
        return computed_in(self.arithmetic, self.loaded.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The outcome of a whole audit."""

    card: Card
    profile: Profile
    simulation: Simulation


def prepare(
    settings: Settings, say: Callable[[str], None] = lambda text: None, *, inputs: Inputs | None = None
) -> Subject:
    """Check every option and file, cheapest first, then load. inputs: the files, where they are read already.

    Raises a QuantauditError that names the cause.
    """
    imports_done()
    parse_device(settings.device)
    wanted = map(find_scheme, (*SCHEMES, *settings.schemes))
    schemes = tuple({scheme.name: scheme for scheme in wanted}.values())
    recipes = _read_recipes(settings.recipes, [scheme.name for scheme in schemes])
    inputs = inputs or open_inputs(settings)
    rows, checkpoint = inputs.corpus, inputs.checkpoint
    source = load_tokenizer(settings.corpus_tokenizer) if settings.corpus_tokenizer else None
    processor = None
    if any(row.pictures for row in rows.rows):
        processor = load_processor(checkpoint, trust_remote_code=settings.trust_remote_code)
        say("samples with images run one at a time")
    say(f"loading {checkpoint.name}")
    loaded = _load(checkpoint, settings)
    arithmetic = choose_arithmetic(settings.arithmetic, loaded.model)
    if arithmetic == "float32":
        say(f"products are computed in float32 and rounded to {loaded.info.dtype}")
    elif is_slow(loaded.model):
        say(f"products of {loaded.info.dtype} are slow on this processor; --arithmetic float32 is faster")
    with timed("tokenizing the corpus"):
        corpus = tokenize(
            rows,
            loaded.tokenizer,
            vocab_size=loaded.info.vocab_size,
            context_length=loaded.info.context_length,
            max_length=settings.max_length,
            samples=settings.samples,
            seed=settings.seed,
            special_tokens=settings.special_tokens,
            source=source,
            processor=processor,
        )
    if corpus.info.truncated:
        say(f"{corpus.info.truncated} samples cut to the model's context or --max-length")
    resolved = tuple(_resolve(path, recipe, loaded) for path, recipe in recipes.items())
    time_first_call(loaded.model, "the first forward pass")
    return Subject(
        settings=settings, loaded=loaded, arithmetic=arithmetic, corpus=corpus, schemes=schemes, recipes=resolved
    )


def load_again(settings: Settings) -> LoadedModel:
    """The model as it was, for a subject whose model has been changed."""
    return _load(locate(settings.model, revision=settings.revision), settings)


def _load(checkpoint: Checkpoint, settings: Settings) -> LoadedModel:
    return load_model(
        checkpoint,
        device=parse_device(settings.device),
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )


def measure_subject(subject: Subject, stages: Stages = silent_stages, shard: Shard | None = None) -> Profile:
    """One forward pass over the corpus, or a shard of it, with every site tapped.

    Attention runs eagerly, as llm-compressor calibrates it, unless another is asked for or, under `auto`, a sample is
    longer than EAGER_TOKENS.
    """
    advance = stages("measuring", subject.corpus.info.tokens // (shard.count if shard else 1), "tokens")
    longest = max(len(sample.ids) for sample in subject.corpus.samples)
    # Eager attention keeps a matrix of tokens by tokens for every head.
    chosen = subject.settings.attention
    eager = chosen == "eager" or (chosen == "auto" and longest <= EAGER_TOKENS)
    with subject.computed(), eager_attention(subject.loaded.model) if eager else nullcontext():
        return measure(
            subject.loaded,
            subject.corpus,
            batch_size=subject.settings.batch_size,
            seed=subject.settings.seed,
            experts=subject.settings.experts,
            shard=shard,
            progress=advance,
        )


def simulate_subject(subject: Subject, profile: Profile, stages: Stages = silent_stages) -> Simulation:
    """Predict what schemes and recipes do. Raises FormatError when the profile is of another model or corpus."""
    check_profile(subject, profile)
    with subject.computed():
        return simulate(
            subject.loaded,
            profile,
            subject.corpus.samples,
            subject.schemes,
            evaluation_tokens=subject.settings.evaluation_tokens,
            score=subject.settings.score,
            single=find_single(subject.settings.single_groups),
            recipes=subject.recipes,
            stages=stages,
        )


def audit(
    settings: Settings,
    *,
    inputs: Inputs | None = None,
    profile: Profile | None = None,
    policy: str = "default",
    redact_text: bool = False,
    stages: Stages = silent_stages,
    say: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Everything that `quantaudit report` does, except writing files.

    inputs: the files of the settings, where they are read already. profile: one measured before, to skip measuring.
    Raises a QuantauditError that names cause and remedy.
    """
    rules = load_policy(policy)
    if profile is not None and settings.arithmetic == "auto":
        settings = replace(settings, arithmetic=own_arithmetic(profile))
    start = perf_counter()
    timings: dict[str, float] = {}

    def lap(stage: str) -> None:
        timings[stage] = perf_counter() - start - sum(timings.values())

    subject = prepare(settings, say, inputs=inputs)
    lap("loading")
    say(cost(subject, measured=profile is not None))
    if profile is None:
        profile = measure_subject(subject, stages)
        lap("measuring")
    simulation = simulate_subject(subject, profile, stages)
    lap("simulating")
    scales = scale_rows(profile)
    if redact_text or profile.provenance.corpus.redacted:
        simulation = redact_simulation(simulation, subject.corpus.info, subject.corpus.sample_infos())
        profile = redact(profile)
    card = build_card(profile, scales, simulation, rules, timings=timings)
    return Audit(card=card, profile=profile, simulation=simulation)


def cost(subject: Subject, *, measured: bool = False) -> str:
    """What a run will take, in forward passes, before it starts."""
    info, budget = subject.corpus.info, subject.settings.evaluation_tokens
    evaluation = min(budget, info.evaluation.tokens)
    parts = [] if measured else [f"one pass over {info.samples:,} samples ({info.tokens:,} tokens)"]
    work = extra_work(subject.loaded.model) if subject.settings.experts == "all" else None
    if parts and work is not None:
        parts[0] += f", its experts on all tokens ({work:,.3g} times their work)"
    smoothing = sum(len(recipe.smooth) + 1 for recipe in subject.recipes if recipe.smooth)
    if smoothing:
        parts.append(f"{smoothing} passes over {info.calibration.tokens:,} calibration tokens to smooth")
    by_damage = subject.settings.score == "damage"
    single = _single_groups(subject)
    passes = forward_passes(subject.schemes, recipes=len(subject.recipes), by_damage=by_damage, single=single)
    told = f"about {passes:.0f} passes over {evaluation:,} evaluation tokens"
    if single:
        told += f", {single_passes(single)} of them for single groups"
    if not by_damage:
        told += ", one of them backward too"
    return " and ".join([*parts, told])


def _single_groups(subject: Subject) -> int:
    """How many fused groups will be simulated alone, if all have a damage."""
    wanted = find_single(subject.settings.single_groups)
    if wanted == 0:
        return 0
    inside = sum(group.layer is not None for group in discover(subject.loaded.model).groups)
    return inside if wanted is None else min(wanted, inside)


def _read_recipes(paths: tuple[Path, ...], schemes: list[str]) -> dict[Path, ParsedRecipe]:
    """Raises RecipeError for a file that is none, and UsageError where two rows would have one name."""
    if twice := check_names((path.stem for path in paths), (*schemes, *NAMED, MIXED)):
        raise UsageError(
            f"two recipes or schemes would be called {twice}", where="--recipe", hint="rename one of the files"
        )
    return {path: read_recipe(path) for path in paths}


def _resolve(path: Path, recipe: ParsedRecipe, loaded: LoadedModel) -> ResolvedRecipe:
    return resolve(recipe, loaded.model).as_recipe(path.stem)


def check_profile(subject: Subject, profile: Profile) -> None:
    """Raises FormatError unless the profile was measured on this model, as it is run now, and on these samples."""
    if profile.provenance.model.fingerprint != subject.loaded.info.fingerprint:
        raise FormatError(
            f"profile was measured on other weights ({profile.provenance.model.name})",
            where="--profile",
            hint="measure this model, or name the one that was measured",
        )
    dtype = profile.provenance.model.dtype
    if dtype != subject.loaded.info.dtype:
        raise FormatError(
            f"profile was measured in {dtype}, and the model is loaded in {subject.loaded.info.dtype}",
            where="--profile",
            hint=f"add --dtype {dtype}, or measure again",
        )
    experts = profile.experts
    # Where no experts can run on all tokens, asking for it changes nothing.
    able = experts == "all" or extra_work(subject.loaded.model) is not None
    if experts is not None and able and experts != subject.settings.experts:
        raise FormatError(
            f"profile was measured with --experts {experts}",
            where="--profile",
            hint=f"add --experts {experts}, or measure again",
        )
    text = profile.provenance.corpus
    if text.special_tokens != subject.corpus.info.special_tokens:
        raise FormatError(
            f"profile was measured with --special-tokens {text.special_tokens}",
            where="--profile",
            hint=f"add --special-tokens {text.special_tokens}, or measure again",
        )
    if text.tokenizer != subject.corpus.info.tokenizer:
        raise FormatError(
            f"profile was measured on ids of {text.tokenizer or 'the model itself'}",
            where="--profile",
            hint="give the same --corpus-tokenizer as when it was measured",
        )
    rows = profile.samples, subject.corpus.sample_infos()
    same, other = ([_identity(row, text.redacted) for row in part] for part in rows)
    if text.sha256 != subject.corpus.info.sha256 or same != other:
        raise FormatError(
            f"profile was measured on other text ({text.name})",
            where="--profile",
            hint="give the same --corpus, --samples, --max-length and --seed as when it was measured"
            + (f"; it was read at revision {text.revision}" if text.revision else ""),
        )


def _identity(sample: SampleInfo, redacted: bool) -> tuple[str, str, int]:
    return "" if redacted else sample.id, sample.split, sample.tokens
