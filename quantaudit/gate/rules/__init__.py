"""Rules about recipes, QA4xx of the recipe itself and QA5xx against measurements. Importing this registers them all."""

from __future__ import annotations

from collections.abc import Mapping

from quantaudit.common.findings import Rule, rules_of
from quantaudit.gate.rules import agreement, calibration, measured, reach, seal, transforms, trust, units, whole_model
from quantaudit.gate.rules import compatibility as engine

__all__ = [
    "RULES",
    "agreement",
    "calibration",
    "engine",
    "measured",
    "reach",
    "seal",
    "transforms",
    "trust",
    "units",
    "whole_model",
]

RULES: Mapping[str, Rule] = rules_of("recipe")
"""By code, in the order of codes."""
