"""The checkpoints that are compared and their text, located and read before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantaudit.common.outputs.claims import check_inputs
from quantaudit.errors import UsageError
from quantaudit.model.loading.checkpoint import Checkpoint, locate
from quantaudit.pipeline.files import InputFiles, open_files
from quantaudit.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Several checkpoints and one corpus. base: of the first of them; others: the rest."""

    base: InputFiles
    others: tuple[Checkpoint, ...]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All of them, the base first."""
        assert isinstance(self.base.model, Checkpoint)
        return [self.base.model, *self.others]


def open_models(settings: Settings, others: Sequence[str]) -> ModelFiles:
    """Read and locate what is compared: the settings' model and others, which may be quantized. Imports no torch.

    Raises a QuantauditError that names the cause.
    """
    if not others:
        raise UsageError(
            "one model alone is given, and two or more are compared",
            where="--logits",
            hint="give the base first, then what is compared with it",
        )
    base = open_files(settings, compressed=True)
    if any(row.pictures for row in base.corpus.rows):
        raise UsageError(
            "samples with images are not compared", where=base.corpus.name, hint="give a corpus of text alone"
        )
    located = tuple(locate(spec, compressed=True) for spec in others)
    for checkpoint in located:
        check_inputs({"a model": checkpoint.weights[0] if checkpoint.gguf else checkpoint.folder})
    return ModelFiles(base=base, others=located)
