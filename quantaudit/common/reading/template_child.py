"""Writes chats with chat templates, by transformers' own code. Run as a program of its own, by path; imports no other
module of the package.

Reads one JSON object a line on stdin, the keyword arguments of `render_jinja_template`; answers each with one line:
`{"rendered": …}`, or `{"error": …}` with the words of what was raised, and what kind of fault it is. Every chat has
`SECONDS` of processor time: in the midst of a loop, be it one within C, the kernel ends the process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SECONDS = 2
"""Of processor time for one chat; an ordinary one takes a millisecond."""
CHARACTERS = 8 << 20
"""Of one chat's text."""
MEMORY = 1 << 30
"""Bytes that a chat may need in addition to what the libraries hold."""


def main() -> None:
    """Answer until stdin ends."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # seconds of import that no template needs
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    limit_memory()
    for line in sys.stdin:
        start_clock()
        print(json.dumps(answer(render_jinja_template, json.loads(line), TemplateSyntaxError)), flush=True)


def answer(render: Any, arguments: dict[str, Any], faulty: type[Exception]) -> dict[str, Any]:
    """What rendering gives, or raises. faulty: what is raised for a template that no chat can be written with."""
    try:
        rendered, spans = render(**arguments)
    except Exception as error:  # templates raise whatever they like
        words = str(error) or type(error).__name__
        return {"error": words, "memory": isinstance(error, MemoryError), "syntax": isinstance(error, faulty)}
    if sum(map(len, rendered)) > CHARACTERS:
        return {"error": f"it writes more than {CHARACTERS:,} characters", "limit": True}
    return {"rendered": [rendered, spans]}


def limit_memory() -> None:
    """Let an allocation fail that would take more than is sane; where the system says what is held already."""
    try:
        import resource

        # Addresses, of which libraries reserve many on a machine with many cores.
        with open("/proc/self/statm", encoding="ascii") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    except (ImportError, ValueError, OSError):
        return


def start_clock() -> None:
    """Give the process some more seconds of processor time."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS + 1, hard))


if __name__ == "__main__":
    main()
