"""quantaudit: will low-bit activations work on this model, where do they break, and what avoids it?

The names below are the public interface: the product's verbs, and what they take and give. They load on first use, so
that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from quantaudit._version import __version__

if TYPE_CHECKING:
    from quantaudit.advise.goal import Offers
    from quantaudit.api.advise import advise
    from quantaudit.api.allocate import allocate
    from quantaudit.api.atlas import atlas
    from quantaudit.api.audit import audit
    from quantaudit.api.check_card import check_card
    from quantaudit.api.compare import compare
    from quantaudit.api.compare_logits import compare_logits
    from quantaudit.api.conform import conform
    from quantaudit.api.gate import gate
    from quantaudit.api.insert import insert
    from quantaudit.api.measure import measure
    from quantaudit.api.merge import merge
    from quantaudit.api.render import render
    from quantaudit.api.simulate import simulate
    from quantaudit.api.verify import verify
    from quantaudit.card.schema import Card, load_card
    from quantaudit.errors import QuantauditError
    from quantaudit.measure.observe import Observation, observe
    from quantaudit.measure.profile import Profile, load_profile, save_profile
    from quantaudit.pipeline.audit import Audit

_HOMES = {
    "Audit": "quantaudit.pipeline.audit",
    "Card": "quantaudit.card.schema",
    "Observation": "quantaudit.measure.observe",
    "Offers": "quantaudit.advise.goal",
    "Profile": "quantaudit.measure.profile",
    "QuantauditError": "quantaudit.errors",
    "advise": "quantaudit.api.advise",
    "allocate": "quantaudit.api.allocate",
    "atlas": "quantaudit.api.atlas",
    "audit": "quantaudit.api.audit",
    "check_card": "quantaudit.api.check_card",
    "compare": "quantaudit.api.compare",
    "compare_logits": "quantaudit.api.compare_logits",
    "conform": "quantaudit.api.conform",
    "gate": "quantaudit.api.gate",
    "insert": "quantaudit.api.insert",
    "load_card": "quantaudit.card.schema",
    "load_profile": "quantaudit.measure.profile",
    "measure": "quantaudit.api.measure",
    "merge": "quantaudit.api.merge",
    "observe": "quantaudit.measure.observe",
    "render": "quantaudit.api.render",
    "save_profile": "quantaudit.measure.profile",
    "simulate": "quantaudit.api.simulate",
    "verify": "quantaudit.api.verify",
}

__all__ = [
    "Audit",
    "Card",
    "Observation",
    "Offers",
    "Profile",
    "QuantauditError",
    "__version__",
    "advise",
    "allocate",
    "atlas",
    "audit",
    "check_card",
    "compare",
    "compare_logits",
    "conform",
    "gate",
    "insert",
    "load_card",
    "load_profile",
    "measure",
    "merge",
    "observe",
    "render",
    "save_profile",
    "simulate",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quantaudit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
