"""Rules about recipes, QA4xx of the recipe itself and QA5xx against measurements. Importing this registers them all."""

from __future__ import annotations

from quantaudit.gate.rules import calibration as activations
from quantaudit.gate.rules import engine, measured, transforms
from quantaudit.gate.rules import reach as structure
from quantaudit.gate.rules import whole_model as whole
from quantaudit.gate.rules.registry import RULES, Hit, Rule

for _code in sorted(RULES):
    RULES[_code] = RULES.pop(_code)

__all__ = ["RULES", "Hit", "Rule", "activations", "engine", "measured", "structure", "transforms", "whole"]
