"""`quantaudit.measure`: a model and a corpus → a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from quantaudit.api.arguments import model_of, path_of, plain, shown
from quantaudit.settings import Options, Settings

if TYPE_CHECKING:
    from quantaudit.measure.profile import Profile


def measure(
    model: Any = "demo",
    corpus: str | Path = "builtin",
    *,
    tokenizer: Any = None,
    shard: str | None = None,
    memory_budget: str | None = None,
    progress: bool | None = None,
    **options: Unpack[Options],
) -> Profile:
    """Measure activation statistics at every site of a model.

    model: Hub id, folder, .gguf file, `demo`, or a model of transformers in evaluation mode, with its tokenizer. shard:
    `I/N` to measure one part of N. memory_budget: such as `24GiB`, by default most of what is available; weights that
    do not fit are read from disk, block by block. options: `MeasureOptions`, `CorpusSpec` and `ModelSpec`. progress:
    None shows it in a terminal and a notebook. Raises a QuantauditError that names cause and remedy.

    >>> profile = quantaudit.measure("demo", samples=6, max_length=64)
    >>> len(profile.samples)
    6
    """
    from quantaudit.pipeline.files import open_files

    spec, loaded = model_of(model, tokenizer, options)
    settings = Settings.of(spec, str(path_of(corpus, "corpus")), **plain(dict(options)))
    files = open_files(settings, loaded)
    with shown(progress) as (stages, say):
        stages("starting", 0)
        from quantaudit.measure.shard import parse_shard
        from quantaudit.model.blockwise.memory import parse_size
        from quantaudit.pipeline.measure import measure as run

        part = None if shard is None else parse_shard(shard)
        memory = None if memory_budget is None else parse_size(memory_budget, "memory_budget")
        return run(settings, files=files, shard=part, stages=stages, say=say, memory=memory)
