"""What an audit comes to: its outcome with the exit code, and the severities of findings with their order."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Outcome = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: Mapping[Outcome, int] = MappingProxyType({"pass": 0, "fail": 1, "inconclusive": 3})
"""Exit code of the command line by outcome; 2 is for input that cannot be used (`errors`)."""

Severity = Literal["error", "warning", "info"]
"""How grave a finding about a model or an artifact is."""
GateSeverity = Literal["error", "inconclusive", "warning", "info"]
"""How grave a finding about a recipe is; `inconclusive` is what is not known, which never passes."""
SEVERITY_ORDER: Mapping[GateSeverity, int] = MappingProxyType({"error": 0, "inconclusive": 1, "warning": 2, "info": 3})
"""Position of a severity in every list of findings, gravest first."""
