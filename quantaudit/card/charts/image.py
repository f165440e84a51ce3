"""Specification → static image, without a browser."""

from __future__ import annotations

from typing import Any

from quantaudit.card.charts import theme

WIDTH, SCALE = 700, 2


def png(spec: dict[str, Any]) -> bytes:
    """The chart on white paper: a transparent one could not be read on a dark page."""
    import vl_convert

    image: bytes = vl_convert.vegalite_to_png(
        spec | {"width": WIDTH, "padding": 12},
        scale=SCALE,
        config=theme.paper("#24292f", "#d0d7de", "#ffffff", theme.IMAGE_FONTS),
        allowed_base_urls=[],
    )
    return image
