"""The whole audit as functions: checkpoint + corpus → profile → simulation → card. The command line calls these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from quantaudit.card.build import build_card
from quantaudit.card.redact import redact, redact_simulation
from quantaudit.card.schema import Card
from quantaudit.common.choices import find_single
from quantaudit.common.progress import Job, Stage, Stages, silent_stages
from quantaudit.common.timing import imports_done, timed
from quantaudit.corpus.tokens import TokenizedCorpus, tokenize
from quantaudit.errors import FormatError, UsageError
from quantaudit.measure.profile import Profile
from quantaudit.measure.shard import Shard
from quantaudit.model.experts import extra_work
from quantaudit.model.forward.arithmetic import choose_arithmetic, computed_in, is_slow
from quantaudit.model.forward.causal import ahead_doubts
from quantaudit.model.forward.hooks import time_first_call
from quantaudit.model.loading.checkpoint import Checkpoint, locate
from quantaudit.model.loading.load import LoadedModel, load_model, load_tokenizer, parse_device
from quantaudit.model.loading.processor import load_processor
from quantaudit.pipeline.inputs import Inputs, open_inputs
from quantaudit.pipeline.schedule import advise_samples, describe, measure_samples, probe, schedule
from quantaudit.policy import load_policy
from quantaudit.provenance import Arithmetic, SampleInfo
from quantaudit.quant.schemes import NAMED, SCHEMES, Scheme, find_scheme
from quantaudit.recipe.parse import ParsedRecipe, read_recipe
from quantaudit.recipe.resolve import resolve
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.settings import Settings, own_arithmetic, repeat
from quantaudit.simulate.cost import MEASURING, RENDERING, Speed, minutes
from quantaudit.simulate.logits.baselines import MIXED
from quantaudit.simulate.quantized.recipe_plan import check_names
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.run import simulate
from quantaudit.simulate.tensors import scale_rows

__all__ = ["Audit", "Settings", "Subject", "audit", "check_profile", "prepare", "repeat"]


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
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
    *,
    inputs: Inputs | None = None,
    stages: Stages = silent_stages,
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
    stages(f"loading {checkpoint.name}", 0)
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
    """One pass over the corpus, or a shard of it, with every site tapped: `measure_samples` says how."""
    advance = stages(MEASURING, subject.corpus.info.tokens // (shard.count if shard else 1), "tokens")
    return measure_samples(_with_doubts(subject), subject.corpus, advance, shard=shard)


def _with_doubts(subject: Subject) -> Subject:
    """The subject, with what a short run says against its model: kept by the profile, and so by every card of it."""
    loaded = subject.loaded
    with subject.computed():
        ahead = ahead_doubts(loaded.model, subject.corpus.samples, loaded.device)
    info = loaded.info.model_copy(update={"doubts": [*loaded.info.doubts, *ahead]})
    return replace(subject, loaded=replace(loaded, info=info))


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

    subject = prepare(settings, say, inputs=inputs, stages=stages)
    lap("loading")
    announce(subject, stages, say, measured=profile is not None, rendered=True)
    lap("timing")
    if profile is None:
        profile = measure_subject(subject, stages)
        lap("measuring")
    simulation = simulate_subject(subject, profile, stages)
    lap("simulating")
    stages(RENDERING, 0)
    scales = scale_rows(profile)
    if redact_text or profile.provenance.corpus.redacted:
        simulation = redact_simulation(simulation, subject.corpus.info, subject.corpus.sample_infos())
        profile = redact(profile)
    card = build_card(profile, scales, simulation, rules, timings=timings)
    return Audit(card=card, profile=profile, simulation=simulation)


def announce(
    subject: Subject,
    stages: Stages,
    say: Callable[[str], None],
    *,
    measured: bool = False,
    simulated: bool = True,
    rendered: bool = False,
    shards: int = 1,
) -> None:
    """Time a few samples, say what the run will take, and tell the stages. Where nobody listens, nothing is timed."""
    if not isinstance(stages, Job):
        return
    stages("timing a few samples", 0)
    plan = schedule(subject, measured=measured, simulated=simulated, rendered=rendered, shards=shards)
    say(describe(subject, plan))
    if shorter := advise_samples(subject, plan):
        say(shorter)
    stages.expect(plan.stages)


def announce_stages(
    subject: Subject,
    stages: Stages,
    say: Callable[[str], None],
    what: str,
    expected: Callable[[Speed], Sequence[Stage]],
) -> None:
    """The same for other jobs. what: that it does, in words; expected: its stages, from the speed that was measured."""
    if not isinstance(stages, Job):
        return
    stages("timing a few samples", 0)
    found = expected(probe(subject, tapped=False))
    say(f"about {minutes(sum(stage.seconds for stage in found))} from here: {what}")
    stages.expect(found)


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
    asked = "routed" if subject.settings.experts == "auto" else subject.settings.experts
    if experts is not None and able and experts != asked:
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
