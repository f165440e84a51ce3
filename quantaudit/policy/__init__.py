"""Thresholds and verdicts: which limits decide, with their reasons, and what they make of a simulated recipe."""

from quantaudit.policy.judge import Status, judge, passes, scores
from quantaudit.policy.read import load_policy
from quantaudit.policy.sections import Policy, PolicyName, identity_of

__all__ = ["Policy", "PolicyName", "Status", "identity_of", "judge", "load_policy", "passes", "scores"]
