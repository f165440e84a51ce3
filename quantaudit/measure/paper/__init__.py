"""A profile under the names of *Measuring Maximum Activations in Open Large Language Models* (arXiv 2605.15572)."""

from quantaudit.measure.paper.reference import reference, reference_json

__all__ = ["reference", "reference_json"]
