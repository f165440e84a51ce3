"""All that a run's results depend on, by name: a run goes on from another only where all of it is the same."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from quantaudit.common.ranks.team import gather
from quantaudit.errors import UsageError
from quantaudit.measure.profile import profile_bytes
from quantaudit.measure.run import PACKAGES

if TYPE_CHECKING:
    from quantaudit.common.outputs.resume import RunState
    from quantaudit.measure.profile import Profile
    from quantaudit.pipeline.prepare import AuditInputs

_OF_KERNELS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")
"""Variables that choose how processors add up."""


def resumable(
    state: RunState | None, inputs: AuditInputs, profile: Profile | None = None, **more: Any
) -> AbstractContextManager[None]:
    """The context of all work that a run with this state may take over from one before; any context for None.

    Raises UsageError where ranks differ in anything that results depend on.
    """
    if state is None:
        return nullcontext()
    about = identity(inputs, profile, **more)
    _check_ranks(about)
    return state.running(about)


def _check_ranks(about: dict[str, Any]) -> None:
    """Raises UsageError where another rank is not about the very same work."""
    first, *others = gather({name: repr(value) for name, value in about.items()})
    for rank, other in enumerate(others, 1):
        if names := [name for name, value in first.items() if other[name] != value]:
            raise UsageError(
                f"rank {rank} has another {', '.join(names)} than rank 0",
                where="ranks",
                hint="start all ranks with the same command, packages, files, threads and kind of processor",
            )


def identity(inputs: AuditInputs, profile: Profile | None = None, **more: Any) -> dict[str, Any]:
    """By name, for `RunState.running`. more: what else a verb's results depend on."""
    text = hashlib.sha256()
    for sample in inputs.corpus.samples:
        text.update(f"{sample.id} {sample.split} {len(sample.ids)}".encode() + sample.ids.tobytes())
    return {
        "settings": asdict(inputs.settings),
        "model": inputs.loaded.info.model_dump(mode="json"),
        "text": text.hexdigest(),
        "recipes": {str(path): _digest(path) for path in inputs.settings.simulate.recipes},
        "profile": None if profile is None else hashlib.sha256(profile_bytes(profile)).hexdigest(),
        "versions": {name: metadata.version(name) for name in PACKAGES} | {"quantaudit": code_digest()},
        "processor": {
            "device": inputs.loaded.device.type,
            "arithmetic": inputs.arithmetic,
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            **{name: os.environ.get(name) for name in _OF_KERNELS},
        },
        **more,
    }


def code_digest() -> str:
    """SHA-256 over the package's own sources."""
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
