"""What gathers something of every batch: it is told which one runs now, and which one does not count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quantaudit.model.forward.batches import Batch


class Follower:
    """Whoever runs the forward sets `batch` before each batch goes on, and says when all are through a module."""

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._ignored: Batch | None = None

    @property
    def batch(self) -> Batch:
        """The batch that runs now."""
        assert self._batch is not None
        return self._batch

    @batch.setter
    def batch(self, batch: Batch) -> None:
        if batch is not self._batch:
            self.turn(batch)
            self._batch = batch

    def turn(self, batch: Batch) -> None:
        """Another batch is about to run: what has to be done between two."""

    def finish(self, path: str) -> None:
        """All batches are through the module at this path: what can be put away."""

    @property
    def ignores(self) -> bool:
        """Whether the batch that runs now does not count."""
        return self._ignored is not None and self._ignored is self._batch

    @contextmanager
    def ignoring(self, batch: Batch) -> Iterator[None]:
        """While this lasts, what passes of this batch is not counted."""
        self._batch = self._ignored = batch
        try:
            yield
        finally:
            self._batch = self._ignored = None
