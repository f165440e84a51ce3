"""A worker process: vl_convert holds Python's lock while it draws, so that no thread could write pages then.

Run as a module it is that process: it reads pickled (function, arguments) on stdin, and answers each on stdout.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")


class Worker:
    """Runs functions, one after another, in a process of its own that ends with the context.

    Where there can be no such process they run here, later and with the same results.
    """

    def __init__(self) -> None:
        self._waiting = ThreadPoolExecutor(1, thread_name_prefix="charts")
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        if self._process is not None:
            self._process.kill()
        self._waiting.shutdown(cancel_futures=True)
        if self._process is not None:
            self._process.communicate()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """What the function will return or raise. It and its arguments are pickled: a function by its module's name."""
        return self._waiting.submit(self._run, function, arguments)

    def _run(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        try:
            answer, error = self._ask(pickle.dumps((function, arguments)))
        except (OSError, EOFError, pickle.UnpicklingError):
            if self._over:
                raise CancelledError from None
            return function(*arguments)
        if error is not None:
            raise error
        result: T = answer
        return result

    def _ask(self, request: bytes) -> tuple[Any, Exception | None]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable or "python", "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            if self._over:  # else the one that ends it has seen the process
                self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request)
        self._process.stdin.flush()
        answer: tuple[Any, Exception | None] = pickle.load(self._process.stdout)
        return answer


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    while (request := _request(sys.stdin.buffer)) is not None:
        function, arguments = request
        answer: tuple[Any, Exception | None]
        try:
            answer = (function(*arguments), None)
        except Exception as error:  # for the one who asked
            answer = (None, error)
        answers.write(pickle.dumps(answer))
        answers.flush()


def _request(source: BinaryIO) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    try:
        request: tuple[Callable[..., Any], tuple[Any, ...]] = pickle.load(source)
    except EOFError:
        return None
    return request


if __name__ == "__main__":
    main()
