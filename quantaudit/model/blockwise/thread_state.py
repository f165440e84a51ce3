"""What PyTorch keeps for a thread, and a batch that waits must not hand to the batches that run meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from quantaudit.errors import MeasurementError


@dataclass(frozen=True, slots=True)
class ThreadState:
    """Whether gradients are recorded, what autocast does on each device type, and which modes see operations."""

    gradients: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    autocast_cache: bool
    modes: tuple[int, ...]

    @classmethod
    def now(cls, device_types: tuple[str, ...]) -> ThreadState:
        """The state of this thread."""
        function_modes: Any = _get_current_function_mode_stack
        return cls(
            gradients=torch.is_grad_enabled(),
            autocast=tuple(
                (name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in device_types
            ),
            autocast_cache=torch.is_autocast_cache_enabled(),
            modes=tuple(map(id, (*function_modes(), *_get_current_dispatch_mode_stack()))),
        )

    def restore(self) -> None:
        """Make it the state of this thread. Raises MeasurementError where modes were entered, which cannot be moved."""
        now = ThreadState.now(tuple(name for name, _, _ in self.autocast))
        if now == self:
            return
        torch._C._set_grad_enabled(self.gradients)
        for name, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(name, enabled)
            torch.set_autocast_dtype(name, dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
        if now.modes != self.modes:
            raise MeasurementError(
                "the model enters a mode of PyTorch around its decoder blocks, which other batches would run under",
                hint="run it whole: give it more memory with --memory-budget",
            )
