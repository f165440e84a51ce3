"""The command line: one verb a file. Only `main` prints errors; heavy packages load inside the verbs."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from quantaudit.cli import (
    advise,
    atlas,
    card,
    compare,
    conform,
    gate,
    insert,
    measure,
    merge,
    plan,
    render,
    report,
    scales,
    simulate,
    sites,
    verify,
)
from quantaudit.cli.claims import claiming
from quantaudit.cli.usage import help_was_asked, reflowed, usage_error
from quantaudit.common.logs import switch_library_logs_off
from quantaudit.common.printing.inert import inert
from quantaudit.common.printing.streams import set_up_streams, write_results
from quantaudit.common.ranks import processes as ranks
from quantaudit.common.threads import set_up_threads
from quantaudit.common.timing import hide_timings, show_timings
from quantaudit.errors import QuantauditError, RankError, is_out_of_memory

SHARED = ("report", "measure", "simulate", "advise")
"""Verbs whose work ranks share; any other is run by the first rank alone."""
LONGEST = 1000
"""Characters of a line of an error: an option may be of any length, and is named by its beginning."""

app = typer.Typer(
    name="quantaudit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Tells, before an open-weight LLM is released or quantized, whether low-bit activations will work on it, "
    "where they break, and what avoids it.",
    epilog="Exit codes: 0 done · 1 gate failed, limit passed, plan does not run · 2 bad usage or input · "
    "3 inconclusive · 130 interrupted · 141 closed pipe. --debug anywhere shows tracebacks, and how long loading took "
    "by stage.",
)
_FILES = (report, plan, sites, measure, merge, scales, simulate, render, insert, atlas)
_ANSWERS = (gate, advise, verify, conform, compare, card)
for verb in (*_FILES, *_ANSWERS):
    name, text = verb.__name__.rpartition(".")[2], reflowed(verb.run.__doc__ or "")
    app.command(name=name, help=text, epilog=verb.EXAMPLE)(claiming(verb.run))


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True),
) -> None:
    if version:
        from quantaudit._version import __version__

        write_results(f"quantaudit {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Entry point. Every error is one or two lines on stderr and its exit code; a traceback only with --debug.

    Started by torchrun, this is one of several ranks, of which the first prints.
    """
    if any(verb in sys.argv[1:3] for verb in SHARED):
        ranks.enter()
    elif ranks.place().rank:
        return
    set_up_streams()
    debug = "--debug" in sys.argv
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--debug"]
    # A tokenizer that forks worker threads warns on stderr in every later subprocess.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Loaders draw bars of their own over ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    switch_library_logs_off()
    set_up_threads()
    if debug:
        show_timings()
    try:
        try:
            # An exit that a verb asks for is returned, and typer's own errors are raised for us to put in words.
            code = app(standalone_mode=False)
        finally:
            sys.stdout.flush()
            hide_timings()
        raise SystemExit(code or 0)
    except QuantauditError as error:
        _fail(str(error), error.exit_code, debug, of_another=isinstance(error, RankError))
    except KeyboardInterrupt:
        _fail("interrupted", 130, debug)
    except SystemExit as stop:
        if stop.code != 130:
            if stop.code:
                ranks.failed(f"exit code {stop.code}")
            raise
        _fail("interrupted", 130, debug)  # inside a verb typer takes the interrupt, and says nothing
    except OSError as error:  # a path that no system call takes: too long a name, links in a circle
        path = f"{str(error.filename)[:200]}: " if error.filename else ""
        _fail(f"{path}cannot be used: {(error.strerror or str(error)).lower()}\ncheck the path", 2, debug)
    except MemoryError:
        _fail("not enough memory\ngive a smaller input, or more memory", 2, debug)
    except Exception as error:
        if help_was_asked(error):
            raise SystemExit(2) from error
        if usage := usage_error(error):
            _fail(str(usage), usage.exit_code, debug)
        if is_out_of_memory(error):
            remedy = (
                "cut samples shorter with --max-length, run block by block with --memory-budget, or give more memory"
            )
            _fail(f"not enough memory for a forward or backward pass\n{remedy}", 2, debug)
        reason = str(error).strip().splitlines()[:1] or [""]
        _fail(f"unexpected {type(error).__name__}: {reason[0]}\nadd --debug for the traceback", 2, debug)


def _fail(message: str, code: int, debug: bool, *, of_another: bool = False) -> None:
    ranks.failed(message, of_another=of_another)
    if debug:
        traceback.print_exc()
    short = "\n".join(line if len(line) <= LONGEST else f"{line[:LONGEST]}…" for line in message.split("\n"))
    print(f"error: {inert(short)}", file=sys.stderr, flush=True)
    raise SystemExit(code)
