"""Matches regular expressions within a budget of processor time. Run as a program of its own, by path; imports no other
module of the package.

Reads one JSON object on stdin: `patterns` and `names`, lists of texts, and `seconds` in all. Writes the index of each
pattern before it begins with it, one a line, and at the end `done`; or, where time runs out, `slow` with the indices of
the pattern that took most of it and of the name that it was at.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import warnings


class _TimeIsUp(Exception):  # noqa: N818 (not an error)
    pass


def main() -> None:
    """Match every pattern with every name, as `re.match` does."""
    job = json.load(sys.stdin)
    warnings.simplefilter("ignore")
    # sre looks for signals while it matches; where there is no such timer, the parent's own limit holds.
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, _stop)
        signal.setitimer(signal.ITIMER_PROF, job["seconds"])
    worst = (0.0, 0, 0)
    pattern, name, start = 0, 0, 0.0
    try:
        for pattern, text in enumerate(job["patterns"]):
            print(pattern, flush=True)
            start, name = time.process_time(), 0
            try:
                match = re.compile(text).match
            except (re.error, RecursionError, OverflowError):
                continue  # whoever uses it says so
            for name, given in enumerate(job["names"]):  # noqa: B007 (read where time runs out)
                match(given)
            worst = max(worst, (time.process_time() - start, pattern, name))
    except _TimeIsUp:
        worst = max(worst, (time.process_time() - start, pattern, name))
        print("slow", worst[1], worst[2], flush=True)
        return
    print("done", flush=True)


def _stop(*_: object) -> None:
    raise _TimeIsUp


if __name__ == "__main__":
    main()
