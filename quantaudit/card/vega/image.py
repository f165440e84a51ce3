"""Specification → static image, without a browser."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from quantaudit.card.charts import theme

WIDTH, SCALE = 700, 2
_UNLABELED = {"aria": False}
"""No label for each mark, which would be most of the drawing; whoever shows it gives it one as a whole."""
_NAME = re.compile(r' id="([^"]+)"')


def png(spec: dict[str, Any]) -> bytes:
    """The chart on white paper: a transparent one could not be read on a dark page."""
    return png_drawing(spec)()


def png_drawing(spec: dict[str, Any]) -> Callable[[], bytes]:
    """What draws it when called, here or in another process."""
    import vl_convert

    return partial(
        vl_convert.vegalite_to_png,
        spec | {"width": WIDTH, "padding": 12},
        scale=SCALE,
        config=theme.paper("#24292f", "#d0d7de", "#ffffff", theme.IMAGE_FONTS) | _UNLABELED,
        allowed_base_urls=[],
    )


def svg(spec: dict[str, Any]) -> str:
    """The chart as an <svg> element on transparent paper, in the text color of what it is placed in.

    Names within it are of this chart alone, so that several can stand on one page. Vega escapes every text.
    """
    import vl_convert

    config = theme.paper("currentColor", theme.FAINT, None, f"{theme.IMAGE_FONTS}, Arial, sans-serif")
    # Text is measured in the first font and may be shown in a wider one.
    config["legend"] |= {"columnPadding": 18}
    drawing: str = vl_convert.vegalite_to_svg(
        spec | {"width": WIDTH, "padding": 4}, config=config | _UNLABELED, allowed_base_urls=[]
    )
    return _with_own_names(drawing, spec).replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)


def _with_own_names(drawing: str, spec: dict[str, Any]) -> str:
    """A drawing whose names depend on the specification alone: Vega counts through the life of a process."""
    prefix = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    for index, name in enumerate(_NAME.findall(drawing)):
        drawing = drawing.replace(f' id="{name}"', f' id="{prefix}-{index}"')
        drawing = drawing.replace(f"url(#{name})", f"url(#{prefix}-{index})")
    return drawing
