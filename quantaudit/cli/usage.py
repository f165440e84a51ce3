"""Errors of whoever parses the command line, in the words of all other errors: what is wrong, where, what to do."""

from __future__ import annotations

import inspect
import re
from typing import Any

from quantaudit.errors import UsageError

PROGRAM = "quantaudit"
_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((?P<extra>.*)\)\.?", re.DOTALL)
_INVALID = re.compile(r"Invalid value for (?:'(?P<option>[^']*)'|(?P<bare>[^\s:]+)): (?P<problem>.*)", re.DOTALL)


def usage_error(error: Exception) -> UsageError | None:
    """The error of a parser as one of ours; None for any other error.

    Parsers are known by what they offer: some releases of typer carry a copy of click, others depend on it.
    """
    message, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if message is None:
        return None
    command = _command(context)
    help_ = f"`{command} --help` lists what it takes"
    text = message().strip().removesuffix(".")
    if extra := _EXTRA.fullmatch(text):
        takes = _arguments(context)
        alone = f"one {takes}" if takes and " " not in takes else takes or "no argument"
        return UsageError(
            f"takes {alone}, and was given {extra['extra']} too",
            where=command,
            hint=f"give one {takes}, or run the command for each" if takes and " " not in takes else help_,
        )
    if invalid := _INVALID.fullmatch(text):
        return UsageError(_lower(invalid["problem"]), where=invalid["option"] or invalid["bare"], hint=help_)
    return UsageError(_lower(text), where=None if command == PROGRAM else command, hint=help_)


def help_was_asked(error: Exception) -> bool:
    """Whether a command was given nothing at all, and has shown its help for it."""
    return type(error).__name__ == "NoArgsIsHelpError"


def _command(context: Any) -> str:
    """`quantaudit atlas`, however the program was started."""
    names: list[str] = []
    while getattr(context, "parent", None) is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return " ".join([PROGRAM, *names])


def _arguments(context: Any) -> str:
    """Names of what a command takes, such as `DIR`."""
    parameters = getattr(getattr(context, "command", None), "params", [])
    arguments = [one for one in parameters if getattr(one, "param_type_name", "") == "argument"]
    return " ".join(str(one.metavar or one.name or "").strip("[]{}").upper() for one in arguments)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def reflowed(docstring: str) -> str:
    """A docstring as help: one line for each paragraph, as typer keeps line breaks of all but the first."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(docstring).split("\n\n"))
