"""The scripts that draw charts on a page."""

from __future__ import annotations

import functools
import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from quantaudit.common.files import write_text
from quantaudit.errors import OutputError

_SNIPPET = "window.vegaEmbed = vegaEmbed;"


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that puts `vegaEmbed` on the window.

    Bundling takes seconds and gives the same for a version of vl_convert, so it is kept in the user's cache folder.
    """
    kept = _kept_in()
    script = _read(kept)
    if script is None:
        script = _bundled()
        with suppress(OutputError):  # what cannot be kept is made again
            write_text(kept, f"{_digest(script)}\n{script}")
    return script


def warm_up() -> None:
    """Start what draws, which takes a second, before there is anything to draw."""
    import vl_convert

    vl_convert.vegalite_to_svg({"mark": "point", "data": {"values": []}}, allowed_base_urls=[])


def _bundled() -> str:
    import vl_convert

    made: str = vl_convert.javascript_bundle(_SNIPPET)
    # Inside a string or a regular expression "<\/" is "</" again, and the page's parser no longer sees an end tag.
    return made.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r", "")


def _kept_in() -> Path:
    return user_cache_path("quantaudit", appauthor=False) / f"vega-{version('vl-convert-python')}.js"


def _read(path: Path) -> str | None:
    """A kept script; None where there is none, or not the one that was kept."""
    try:
        digest, _, script = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    return script if digest == _digest(script) else None


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()
