"""The process that draws a card's images and bundles its scripts, while this one makes its pages."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from quantaudit.card.vega import scripts
from quantaudit.card.vega.worker import Worker


class ChartRenderer:
    """Draws until its context ends. Whoever knows early that there will be a card enters it early: starting takes long.

    bundle: the scripts of a page, as `scripts.bundle` has them.
    """

    bundle: Future[str]

    def __init__(self) -> None:
        self._worker = Worker()

    def __enter__(self) -> ChartRenderer:
        self._worker.__enter__()
        self.bundle = self._worker.submit(scripts.bundle)
        self._worker.submit(scripts.warm_up)
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.__exit__(*error)

    def draw(self, specs: Mapping[str, dict[str, Any]]) -> dict[str, Future[bytes]]:
        """PNG images of specifications, by name. They are drawn in this order, and one can be cancelled before."""
        from quantaudit.card.vega.image import png_drawing

        return {name: self._worker.submit(png_drawing(spec)) for name, spec in specs.items()}
