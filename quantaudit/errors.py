"""What can go wrong, as one tree; every error knows its exit code and how to go on.

QuantauditError                 exit 2
├── UsageError                  an option, a device or a dtype that does not exist here
├── ModelError                  a checkpoint that is missing, broken, unsafe or of an unknown layout
├── CorpusError                 a corpus that is missing, empty, or has a row that cannot be used
├── RecipeError                 a recipe that llm-compressor cannot read, or would read as something else than it says
├── FormatError                 a profile, card, simulation or policy file that cannot be read
├── OutputError                 a place that cannot be written
├── MeasurementError            a forward pass that did not run as announced
├── RankError                   a process that shares the work of a run, and has ended or did not come
└── AuditError                  an audit inside llm-compressor that stops a recipe
"""

from __future__ import annotations

__all__ = [
    "AuditError",
    "CorpusError",
    "FormatError",
    "MeasurementError",
    "ModelError",
    "OutputError",
    "QuantauditError",
    "RankError",
    "RecipeError",
    "UsageError",
]


class QuantauditError(Exception):
    """Base of every error that a user can act upon: what was wrong, where, and what to do.

    `where` is a path, a `path:line`, an option or a module; `hint` is the remedy. Only the command line prints them.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """`where: message`, then the hint on a line of its own."""
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n{self.hint}" if self.hint else head


class UsageError(QuantauditError):
    """An option, a device or a dtype that does not exist here."""


class ModelError(QuantauditError):
    """A checkpoint that is missing, broken, unsafe to load, or of a layout that is not understood."""


class CorpusError(QuantauditError):
    """A corpus that is missing, empty, or has a row that cannot be used."""


class RecipeError(QuantauditError):
    """A recipe that llm-compressor cannot read, or would read as something else than it says."""


class FormatError(QuantauditError):
    """A profile, card, simulation or policy file that cannot be read."""


class OutputError(QuantauditError):
    """A place that cannot be written, or that would be overwritten."""


class MeasurementError(QuantauditError):
    """A forward pass that did not run as announced."""


class RankError(QuantauditError):
    """A process that shares the work of a run, and has ended before it or did not come."""


class AuditError(QuantauditError):
    """An audit inside llm-compressor that stops a recipe: it failed its policy, or could only come too late."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether something failed for want of memory, be it the device's, as PyTorch says it."""
    named = any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__)
    return isinstance(error, MemoryError) or named or "allocate memory" in str(error)
