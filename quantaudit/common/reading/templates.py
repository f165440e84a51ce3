"""Chat templates, run in a process of their own: a template comes with a checkpoint, and may never finish.

jinja2's sandbox keeps a template from files and attributes, and not from loops, nor from `10 ** 10 ** 10`, which no
signal interrupts. The process is started once, with the first chat.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from quantaudit.common.reading import template_child
from quantaudit.errors import CorpusError

_WALL = 60.0
"""Seconds after which no answer is waited for, however busy the machine is; importing comes out of it too."""
_ASKING = ("transformers.tokenization_utils_base", "transformers.processing_utils")
"""Modules that look up the function that renders, for tokenizers and for processors."""


@contextmanager
def templates_apart(source: str) -> Iterator[None]:
    """Within the context, tokenizers and processors render their chats in another process, under its limits.

    source: where the template comes from, for messages. A chat that passes a limit raises CorpusError, and so does
    every one after it.
    """
    renderer = _Renderer(source)
    with ExitStack() as stack:
        stack.callback(renderer.stop)
        for name in _ASKING:
            module = sys.modules.get(name)
            if module is not None and hasattr(module, "render_jinja_template"):
                stack.callback(setattr, module, "render_jinja_template", module.render_jinja_template)
                module.render_jinja_template = renderer  # type: ignore[attr-defined]
        yield


class _Renderer:
    """Stands for transformers' `render_jinja_template`."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.process: subprocess.Popen[str] | None = None
        self.refusal: CorpusError | None = None
        self.lock = threading.Lock()

    def __call__(self, conversations: Any, **arguments: Any) -> Any:
        """Rendered texts and spans of generation. Raises CorpusError at a limit, ValueError where a template does."""
        job = json.dumps({"conversations": conversations, **arguments}, default=str)
        with self.lock:
            if self.refusal is not None:
                raise self.refusal
            answer = self._ask(job)
            if answer is None:
                self.refusal = self._refused(f"does not finish within {template_child.SECONDS} s of processor time")
            elif answer.get("memory"):
                self.refusal = self._refused(f"asks for more than {template_child.MEMORY:,} bytes of memory")
            elif answer.get("syntax"):
                self.refusal = self._refused(f"cannot be read: {answer['error']}")
            elif answer.get("limit"):
                self.refusal = self._refused(f"cannot be used: {answer['error']}")
            if self.refusal is not None:
                raise self.refusal
        assert answer is not None
        if "error" in answer:
            raise ValueError(answer["error"])
        rendered, spans = answer["rendered"]
        return rendered, [[tuple(span) for span in chat] for chat in spans]

    def stop(self) -> None:
        """End the process, if one was started."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _ask(self, job: str) -> dict[str, Any] | None:
        """The process's answer; None where it ended without one."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(Path(template_child.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Timer(_WALL, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(job + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            answer: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        except OSError:
            return None
        finally:
            late.cancel()
        return answer

    def _refused(self, what: str) -> CorpusError:
        return CorpusError(
            f"the model's chat template {what}",
            where=self.source,
            hint="correct the checkpoint's chat template; --special-tokens none writes chats as plain lines",
        )
