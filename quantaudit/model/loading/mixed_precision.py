"""Models of which a part is kept in float32, as transformers keeps norms and routers that 16 bits are too few for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from quantaudit.model.forward.hooks import Arguments, Keywords, OutputChange, change_for_good

_PLAIN = (nn.Linear.forward, Conv1D.forward)
_TRIAL = 4
"""Tokens of the pass that shows whether a model of several dtypes runs."""


@torch.no_grad()
def reconcile_dtypes(model: nn.Module) -> list[str]:
    """Let a model run whose float32 parts hand float32 to 16-bit Linears; notes on what that changed.

    Such a checkpoint was made for engines whose products cast what they read: here norms that are kept in float32 round
    what they return to the dtype of the Linears, and a Linear casts what it reads to its weight's. A model that runs
    without is left unmodified; so is one that fails for another reason, which whoever runs it will report.
    """
    if len({parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}) < 2:
        return []
    linears = [module for module in model.modules() if type(module).forward in _PLAIN]
    if not linears or not _stumbles_over_dtypes(model):
        return []
    weights: list[Any] = [linear.weight for linear in linears]
    common: torch.dtype = Counter(weight.dtype for weight in weights).most_common(1)[0][0]
    for linear in linears:
        change_for_good(linear, inputs=_cast_input)
    for module in model.modules():
        if _is_wide_norm(module):
            change_for_good(module, outputs=_rounding_to(common))
    name = str(common).removeprefix("torch.")
    return [f"norms that are kept in float32 return {name}, as Linears read it: the model does not run otherwise"]


def _stumbles_over_dtypes(model: nn.Module) -> bool:
    device = next(model.parameters()).device
    if device.type == "meta":
        return False
    try:
        model(input_ids=torch.arange(_TRIAL, device=device)[None], use_cache=False)
    except RuntimeError as error:
        return any(words in str(error) for words in ("same dtype", "scalar type"))
    except Exception:  # such as a model that needs images: whoever runs it will know
        return False
    return False


def _is_wide_norm(module: nn.Module) -> bool:
    """Whether a module has nothing but float32 vectors, as norms have."""
    parameters = list(module.parameters(recurse=False))
    return (
        bool(parameters)
        and not any(module.children())
        and all(parameter.ndim == 1 and parameter.dtype == torch.float32 for parameter in parameters)
        and not isinstance(module, nn.Linear | Conv1D)
    )


def _rounding_to(dtype: torch.dtype) -> OutputChange:
    def hook(_module: nn.Module, args: Arguments, _kwargs: Keywords, output: Any) -> Tensor | None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        same = isinstance(output, Tensor) and given is not None and given.shape == output.shape
        return output.to(dtype) if same and output.dtype == torch.float32 else None

    return hook


def _cast_input(linear: Any, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords] | None:
    dtype = linear.weight.dtype
    if not args or not isinstance(args[0], Tensor) or args[0].dtype == dtype or not args[0].is_floating_point():
        return None
    return (args[0].to(dtype), *args[1:]), kwargs
