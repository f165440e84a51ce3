"""One fused group opened: its input's distribution under the one scale, what other scales do, its peak, what to do."""

from quantaudit.card.views.inspector.inspection import Inspection, inspections, packed

__all__ = ["Inspection", "inspections", "packed"]
