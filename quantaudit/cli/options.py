"""Options that several verbs share, each defined once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import MISSING, Field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from quantaudit.settings import CardSpec, CaseSpec, CorpusSpec, MeasureOptions, ModelSpec, SimulateOptions

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, local folder, .gguf file, or `demo` (SmolLM2-135M-Instruct).")
]
CORPUS_HELP = (
    "`builtin`; a .jsonl, .json, .txt (each also .gz) or .parquet file, FILE:::COLUMN for a column; or a dataset, "
    "on the Hub (ORG/NAME or ORG/NAME@REVISION) or in a folder, streamed and never downloaded whole. A part of it is "
    "named after colons, :CONFIG:SPLIT:COLUMN, each of which may be empty or left out: ORG/NAME:en:test, "
    "ORG/NAME::train:body. Without SPLIT it is the only one or `train`; without COLUMN text, messages (with tools) or "
    "input_ids, else conversations, prompt and completion, or question and answer under their usual names, with domain "
    "(or category) and split."
)
Corpus = Annotated[str, typer.Option(metavar="CORPUS", help=CORPUS_HELP)]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="auto (as stored), bfloat16, float16 or float32.")]
Revision = Annotated[str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of a Hub repository.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code shipped with the weights.")]
Samples = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=2,
        help="Use N samples: of a file fairly over domains, all by default; of a dataset the first N "
        "after a seeded shuffle, 512 by default.",
    ),
]
MaxLength = Annotated[int, typer.Option(metavar="TOKENS", min=2, help="Cut samples to this many tokens.")]
SpecialTokens = Annotated[
    Literal["auto", "none"],
    typer.Option(
        help="auto: as deployed, with the tokenizer's special tokens and chat template; "
        "none: without them, as in arXiv 2605.15572."
    ),
]
CorpusTokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENIZER",
        help="Folder or Hub id of the tokenizer that a corpus of input_ids was made with, if it is not the model's: "
        "its ids are decoded, and tokenized again.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(metavar="N", min=1, help="Samples in one forward pass; one with images always runs alone.")
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="In place of --batch-size: as many samples in a forward pass as have this many tokens, padding included. "
        "Where memory does not hold a batch, measuring begins again with half as many samples in each.",
    ),
]
Attention = Annotated[
    Literal["auto", "eager", "native"],
    typer.Option(
        help="Attention while measuring. eager: as llm-compressor calibrates, so that static scales agree; native: "
        "as the model loads; auto: eager up to samples of 4,096 tokens, native beyond and for --export-reference.",
    ),
]
Arithmetic = Annotated[
    Literal["auto", "native", "float32"],
    typer.Option(
        help="Products of 16-bit models on a processor. native: by its own kernels; float32: in float32, rounded once, "
        "as accelerators do; auto: as the profile was measured, else whichever is fast here.",
    ),
]
Experts = Annotated[
    str,
    typer.Option(
        metavar="TOKENS",
        help="Run experts on the tokens `routed` to them, or on `all`, as llm-compressor's oneshot calibrates them: "
        "their work times the experts over the chosen ones. auto: on all those that few tokens are routed to.",
    ),
]
EvaluationTokens = Annotated[
    int, typer.Option(metavar="TOKENS", min=16, help="Tokens that damage and whole-model scores are taken on.")
]
CardTokens = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=16,
        help="Tokens that scores are taken on; by default those that the card was simulated on.",
    ),
]
Score = Annotated[
    str,
    typer.Option(
        metavar="SCORE",
        help="gradient: groups priced in nats by a backward pass; damage: forward passes only; auto: what fits.",
    ),
]
SingleGroups = Annotated[
    str,
    typer.Option(
        "--single-groups",
        metavar="N",
        help="Simulate N fused groups alone too, or `all`, under static INT8: the KL that damage and prices stand for. "
        "One forward pass each, evenly over the ranks of damage; from 8 on, correlations with it are given.",
    ),
]
SchemeSet = Annotated[
    str,
    typer.Option(
        "--schemes",
        metavar="SCHEMES",
        help="Schemes to simulate: `standard` (INT8 static and dynamic, FP8 static and dynamic, W8A16, W4A16, W4A8, "
        "NVFP4, MXFP4, as far as they fit the model), `int8` (its two, for a shorter run), or names with commas.",
    ),
]
Schemes = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        metavar="SCHEME",
        help="Simulate this scheme in addition: a name such as int4_weights_group_32, NAME:OBSERVER, or a preset such "
        "as FP8_BLOCK. Repeatable.",
    ),
]
Recipes = Annotated[
    list[Path] | None,
    typer.Option("--recipe", metavar="RECIPE", help="Score this llm-compressor recipe (.yaml) too. Repeatable."),
]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Measure part I of N, counted from 1. `quantaudit merge` adds all N up to the profile of one whole run, "
        "byte for byte; experts that few tokens are routed to stay unmeasured, as under --experts routed.",
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that the run may use in all, such as 24GiB; by default most of what is available. Weights that do "
        "not fit are read from disk, one decoder block at a time: results are the same, given as many threads a "
        "process.",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="SEED", help="Seed of the calibration/evaluation split, and of a dataset's shuffle.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from a run with the same inputs and options that was interrupted; the result is the same, byte for "
        "byte.",
    ),
]
OutFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")]
ProfileFile = Annotated[Path | None, typer.Option(metavar="PROFILE", help="Use a profile measured before.")]
MovedCorpus = Annotated[
    str | None, typer.Option("--corpus", metavar="CORPUS", help="Where the profile's corpus lies now, if it has moved.")
]
CardProfile = Annotated[
    Path | None, typer.Option("--profile", metavar="PROFILE", help="Profile of the card; in its folder by default.")
]
TemplateDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Templates that replace the shipped ones, file by file.")
]
RequireSealed = Annotated[
    bool,
    typer.Option("--require-sealed", help="Refuse a card that was edited after it was written, or that has no seal."),
]
Policy = Annotated[str, typer.Option(metavar="POLICY", help="`default`, `strict`, `lenient`, or a .yaml file.")]
CaseRecipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="llm-compressor recipe.")]
CaseCard = Annotated[
    Path, typer.Option("--card", metavar="CARD", help="card.json of this model; the result is added to it.")
]

RUN = {
    "device": Device,
    "revision": Revision,
    "arithmetic": Arithmetic,
    "trust_remote_code": TrustRemoteCode,
}
PARAMETERS: dict[type[Any], dict[str, Any]] = {
    ModelSpec: {"model": Model, "dtype": Dtype} | RUN,
    CorpusSpec: {
        "corpus": Corpus,
        "samples": Samples,
        "max_length": MaxLength,
        "special_tokens": SpecialTokens,
        "corpus_tokenizer": CorpusTokenizer,
        "seed": Seed,
    },
    MeasureOptions: {"batch_size": BatchSize, "batch_tokens": BatchTokens, "experts": Experts, "attention": Attention},
    SimulateOptions: {
        "evaluation_tokens": EvaluationTokens,
        "score": Score,
        "single_groups": SingleGroups,
        "scheme_set": SchemeSet,
        "schemes": Schemes,
        "recipes": Recipes,
    },
    CardSpec: {
        "card": CaseCard,
        "profile": CardProfile,
        "corpus": MovedCorpus,
        "evaluation_tokens": CardTokens,
    }
    | RUN,
}
PARAMETERS[CaseSpec] = PARAMETERS[CardSpec] | {"recipe": CaseRecipe, "model": Model}
"""What every field of a part is on the command line; its default is the field's."""


def flattened(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose parameters that are parts (a key of PARAMETERS) are given as one option for each field.

    A field without a default has to be given, and so has the model of a part without one. `Annotated[Part, {name: …}]`
    declares some fields otherwise. Its `check` raises what a part says against its fields, and does nothing else.
    """
    hints = get_type_hints(verb, include_extras=True)
    signature = inspect.signature(verb)
    options: list[inspect.Parameter] = []
    parts: dict[str, tuple[type[Any], list[str]]] = {}
    for name, parameter in signature.parameters.items():
        part, declared = _part(hints[name])
        if part is None:
            options.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        parts[name] = part, [item.name for item in fields(part)]
        options += [_option(item, declared[item.name], parameter.default) for item in fields(part)]

    def made(given: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: part(**{field: _value(given[field], PARAMETERS[part][field]) for field in names})
            for name, (part, names) in parts.items()
        }

    @wraps(verb)
    def run(**given: Any) -> None:
        own = {name: value for name, value in given.items() if name in signature.parameters and name not in parts}
        verb(**own, **made(given))

    run.check = made  # type: ignore[attr-defined]
    run.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options} | {"return": None}
    return run


def in_panel(declared: Any, panel: str) -> Any:
    """An option under a heading of its own in the help. declared: as a key of PARAMETERS has it."""
    hint, option, *others = get_args(declared)
    shown = copy(option)
    shown.rich_help_panel = panel
    return Annotated[(hint, shown, *others)]


def _part(hint: Any) -> tuple[type[Any] | None, dict[str, Any]]:
    """The part that a hint stands for, None where it is an option of its own; and what its fields are declared as."""
    others: dict[str, Any] = {}
    if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], dict):
        hint, others = get_args(hint)
    return (hint, PARAMETERS[hint] | others) if hint in PARAMETERS else (None, {})


def _option(field: Field[Any], declared: Any, part: Any) -> inspect.Parameter:
    default = field.default if field.default is not MISSING else inspect.Parameter.empty
    if field.name == "model" and part is inspect.Parameter.empty:
        default = inspect.Parameter.empty
    # typer gives lists, and takes none as a default.
    default = None if default == () else default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=declared, default=default)


def _value(value: Any, declared: Any) -> Any:
    """typer's lists as tuples, and a list that was not given as an empty one."""
    return tuple(value or ()) if declared in (Schemes, Recipes) else value
