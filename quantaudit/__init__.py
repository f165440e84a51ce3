"""quantaudit: will low-bit activations work on this model, where do they break, and what avoids it?

The names below are the public interface. They load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from quantaudit._version import __version__

if TYPE_CHECKING:
    from quantaudit.card.render import write_card
    from quantaudit.card.schema import Card, load_card
    from quantaudit.errors import QuantauditError
    from quantaudit.measure.observe import Observation, observe
    from quantaudit.measure.profile import Profile, load_profile, merge, save_profile
    from quantaudit.pipeline.run import Audit, audit
    from quantaudit.settings import Settings

_HOMES = {
    "Audit": "quantaudit.pipeline.run",
    "Card": "quantaudit.card.schema",
    "Observation": "quantaudit.measure.observe",
    "Profile": "quantaudit.measure.profile",
    "QuantauditError": "quantaudit.errors",
    "Settings": "quantaudit.settings",
    "audit": "quantaudit.pipeline.run",
    "load_card": "quantaudit.card.schema",
    "load_profile": "quantaudit.measure.profile",
    "merge": "quantaudit.measure.profile",
    "observe": "quantaudit.measure.observe",
    "save_profile": "quantaudit.measure.profile",
    "write_card": "quantaudit.card.render",
}

__all__ = [
    "Audit",
    "Card",
    "Observation",
    "Profile",
    "QuantauditError",
    "Settings",
    "__version__",
    "audit",
    "load_card",
    "load_profile",
    "merge",
    "observe",
    "save_profile",
    "write_card",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quantaudit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
