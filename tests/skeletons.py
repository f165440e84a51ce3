"""Models of every layout that resolution must get right, as loading leaves them, and their shells from a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantaudit.common.resources import resource_dir
from quantaudit.model.experts import linearize
from quantaudit.provenance import ModuleInfo
from quantaudit.recipe.skeleton import class_names, skeleton_model
from tests.builders import tiny_model
from tests.families import family_model

FAMILIES = ("llama", "qwen3-moe", "gemma3", "gpt-oss", "phi3", "gpt2")
RECIPES = sorted(resource_dir("recipes").glob("*.yaml"))


def skeleton(family: str) -> Any:
    """A small random model, experts linearized."""
    model = tiny_model("llama") if family == "llama" else family_model(family)
    linearize(model)
    return model


def module_infos(model: nn.Module) -> list[ModuleInfo]:
    """Modules as a card lists them, by a reading of our own."""
    infos = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        shape = list(weight.shape) if isinstance(weight, torch.Tensor) else None
        infos += [ModuleInfo(name=name, classes=list(class_names(type(module))), weight_shape=shape)] if name else []
    return infos


def shell_of(model: nn.Module) -> nn.Module:
    """The model as it comes back from a card."""
    return skeleton_model(module_infos(model))


def stem(path: Path) -> str:
    """What a parametrized test calls a recipe."""
    return path.stem
