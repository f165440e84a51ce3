"""What a model's configuration says of its text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from quantaudit.model.structure import context_length


@pytest.mark.parametrize(("declared", "length"), [(2048, 2048), (-1, None), (0, None), (None, None), ("long", None)])
def test_a_context_without_a_limit_is_none(declared: object, length: int | None) -> None:
    assert context_length(SimpleNamespace(max_position_embeddings=declared)) == length
    assert context_length(SimpleNamespace()) is None
