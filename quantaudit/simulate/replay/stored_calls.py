"""Recorded calls of decoder blocks, in memory as far as a budget allows, and else on disk until they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.simulate.replay.recorded_calls import Call


class StoredCalls:
    """Calls by block, sample by sample. Those that are put away may be on disk."""

    def __init__(self, blocks: Sequence[str], store: InputStore) -> None:
        self._calls: dict[str, list[Call]] = {path: [] for path in blocks}
        self._store = store
        self._away: dict[int, int] = {}
        self._keys = count()

    def add(self, path: str, call: Call) -> None:
        """One more call of a block."""
        self._calls[path].append(call)

    def put_away(self, call: Call) -> None:
        """It is not needed for a while."""
        if id(call) not in self._away:
            key = self._away[id(call)] = next(self._keys)
            self._store.put(key, (call.args, call.kwargs, call.output_gradients))

    def bring(self, call: Call) -> None:
        """It is needed: its tensors are in memory."""
        if id(call) in self._away:
            self._store.take(self._away.pop(id(call)))

    def of(self, path: str) -> list[Call]:
        """The calls of a block, where they are."""
        return self._calls[path]

    def __getitem__(self, path: str) -> list[Call]:
        """The calls of a block, brought to memory; to be cleared when they are done with."""
        for call in self._calls[path]:
            self.bring(call)
        return self._calls[path]
