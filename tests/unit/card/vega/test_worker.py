"""What runs in the worker process gives and raises the same as here, and is gone afterwards."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import CancelledError

import pytest

from quantaudit.card.render import card_files, render_html, render_markdown
from quantaudit.card.schema import dump_card
from quantaudit.card.vega.worker import Worker
from tests.card_factory import make_card


def test_functions_run_in_another_process_in_order() -> None:
    with Worker() as worker:
        answers = [worker.submit(os.getpid) for _ in range(2)] + [worker.submit(sum, (1, 2))]
        first, second, total = [answer.result() for answer in answers]
    assert first == second != os.getpid()
    assert total == 3


def test_what_a_function_raises_is_raised_here_and_the_next_one_runs() -> None:
    with Worker() as worker:
        wrong = worker.submit(int, "x")
        assert worker.submit(int, "7").result() == 7
        with pytest.raises(ValueError, match="invalid literal"):
            wrong.result()


def test_prints_are_no_answers() -> None:
    with Worker() as worker:
        assert worker.submit(os.system, "echo printed").result() == 0
        assert worker.submit(print, "printed").result() is None
        assert worker.submit(int, "7").result() == 7


@pytest.mark.parametrize("executable", ["", "/nowhere/python", "/bin/true"])
def test_without_such_a_process_it_runs_here(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", executable)
    with Worker() as worker:
        assert worker.submit(os.getpid).result() == os.getpid()


def test_a_process_that_dies_is_no_loss() -> None:
    with Worker() as worker:
        other = worker.submit(os.getpid).result()
        os.kill(other, 9)
        assert worker.submit(sum, (1, 2)).result() == 3


def test_the_process_ends_with_the_context_in_the_midst_of_work() -> None:
    start = time.monotonic()
    with Worker() as worker:
        other = worker.submit(os.getpid).result()
        slow = worker.submit(time.sleep, 600)
    assert time.monotonic() - start < 300
    with pytest.raises(CancelledError):
        slow.result()
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def test_a_card_drawn_by_the_worker_is_the_card_drawn_here() -> None:
    card = make_card()
    section, images = render_markdown(card)
    texts = {"card.json": dump_card(card), "card.html": render_html(card), "card.md": section}
    assert card_files(card) == {name: text.encode() for name, text in texts.items()} | images
