"""`quantaudit.compare_logits`: checkpoints → how far apart their next-token distributions are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from quantaudit.api.arguments import path_of, shown
from quantaudit.common.choices import ArithmeticChoice, SpecialTokens
from quantaudit.errors import UsageError
from quantaudit.settings import Settings

if TYPE_CHECKING:
    from quantaudit.compare.logits.records import LogitsComparison


class LogitsOptions(TypedDict, total=False):
    """What can be asked for, by its name in `Settings`."""

    samples: int | None
    evaluation_tokens: int
    max_length: int
    special_tokens: SpecialTokens
    corpus_tokenizer: str | None
    seed: int
    dtype: str
    device: str
    arithmetic: ArithmeticChoice
    trust_remote_code: bool


def compare_logits(
    base: str | Path,
    *others: str | Path,
    corpus: str | Path = "builtin",
    fail_on: str | Sequence[str] = (),
    out: str | Path | None = None,
    progress: bool | None = None,
    **options: Unpack[LogitsOptions],
) -> LogitsComparison:
    """Compare the next-token distributions of checkpoints with those of the first, on the same held-out tokens.

    base, others: Hub id, folder, .gguf file or `demo`; also what llm-compressor saved quantized. Two models are in
    memory at a time. fail_on: limits such as `kl=0.01` and `top1=0.02`, whose answer is in `outcome`, `decisions` and
    `exit_code`; upper ends of intervals decide. out: folder for compare.html, compare.md and compare.json. progress:
    None shows it in a terminal and a notebook. Raises ModelError for models that have no tokenizer in common, and other
    QuantauditErrors.

    >>> comparison = quantaudit.compare_logits("demo", "demo", samples=6, evaluation_tokens=64, max_length=64)
    >>> comparison.pairs[0].kl.mean.value, comparison.pairs[0].top1.value
    (0.0, 1.0)
    """
    from quantaudit.common.outputs.claims import Output, claimed
    from quantaudit.compare.logits.limits import parse_limits
    from quantaudit.compare.logits.view import write_pages
    from quantaudit.compare.pages import PAGES
    from quantaudit.pipeline.compare.files import open_models

    if unknown := options.keys() - LogitsOptions.__annotations__.keys():
        names = ", ".join(LogitsOptions.__annotations__)
        raise UsageError("unknown option", where=", ".join(sorted(unknown)), hint=f"one of {names}")
    limits = parse_limits([fail_on] if isinstance(fail_on, str) else fail_on)
    specs = [str(path_of(model, "model")) for model in (base, *others)]
    settings = Settings.of(specs[0], str(path_of(corpus, "corpus")), **options)
    place = None if out is None else Output(option="out", path=path_of(out, "out"), folder=True, writes=PAGES)
    read = {f"model {index}": Path(spec) for index, spec in enumerate(specs, 1)}
    with claimed([] if place is None else [place], read):
        files = open_models(settings, specs[1:])
        with shown(progress) as (stages, say):
            stages("starting", 0)
            from quantaudit.pipeline.compare.run import compare_logits as run

            comparison = run(files, limits, stages=stages, say=say)
        if place is not None:
            write_pages(comparison, place.path)
    return comparison
