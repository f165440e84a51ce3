"""`quantaudit.simulate`: a profile and its model → what schemes and recipes do to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from quantaudit.api.arguments import model_of, path_of, plain, profile_of, shown, spec_of_profile
from quantaudit.settings import Options

if TYPE_CHECKING:
    from quantaudit.measure.profile import Profile
    from quantaudit.simulate.records import Simulation


def simulate(
    profile: Profile | str | Path,
    model: Any = None,
    corpus: str | Path | None = None,
    *,
    tokenizer: Any = None,
    memory_budget: str | None = None,
    progress: bool | None = None,
    **options: Unpack[Options],
) -> Simulation:
    """Predict what INT8, other schemes and recipes do to every tensor, fused group and the whole model.

    model: the profile's own where None. corpus: where the profile's text lies now, if it has moved. memory_budget: as
    for `measure`. options: `SimulateOptions`, such as `recipes`, and `ModelSpec`. Raises FormatError where the profile
    is of another model or corpus, and other QuantauditErrors.

    >>> profile = quantaudit.measure("demo", samples=6, max_length=64)
    >>> simulation = quantaudit.simulate(profile, evaluation_tokens=64, recipes=["recipes/w8a8_static.yaml"])
    >>> [row.title for row in simulation.recipes if row.name == "w8a8_static"]
    ['recipe w8a8_static']
    """
    from quantaudit.pipeline.files import open_files
    from quantaudit.pipeline.settings_of_profile import settings_of_profile

    measured = profile_of(profile)
    spec, loaded = model_of(spec_of_profile(measured) if model is None else model, tokenizer, options)
    where = None if corpus is None else str(path_of(corpus, "corpus"))
    settings = settings_of_profile(measured, spec, corpus=where, **plain(dict(options)))
    files = open_files(settings, loaded)
    with shown(progress) as (stages, say):
        stages("starting", 0)
        from quantaudit.model.blockwise.memory import parse_size
        from quantaudit.pipeline.simulate import simulate as run

        memory = None if memory_budget is None else parse_size(memory_budget, "memory_budget")
        return run(settings, measured, files=files, stages=stages, say=say, memory=memory)
