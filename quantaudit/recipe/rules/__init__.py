"""Rules about recipes, QA4xx of the recipe itself and QA5xx against measurements. Importing this registers them all."""

from __future__ import annotations

from quantaudit.recipe.rules import activations, engine, measured, structure, transforms, whole
from quantaudit.recipe.rules.registry import RULES, Hit, Rule

for _code in sorted(RULES):
    RULES[_code] = RULES.pop(_code)

__all__ = ["RULES", "Hit", "Rule", "activations", "engine", "measured", "structure", "transforms", "whole"]
