"""Rotations that a saved checkpoint asks for at run time: transformers loads such a checkpoint and leaves them out."""

from __future__ import annotations

from pathlib import Path

import torch
from compressed_tensors.transform import TransformConfig, TransformFactory
from torch import nn

from quantaudit.conform.artifacts.tensors import Tensors, read_json


def attach_rotations(model: nn.Module, folder: Path) -> None:
    """Hook the transforms of inputs, outputs, queries and keys onto a model, with the matrices saved in its folder.

    Those of weights are in the saved weights already. Raises ModelError where a file cannot be read.
    """
    settings = read_json(folder / "config.json").get("quantization_config") or {}
    transforms = TransformConfig.model_validate(settings.get("transform_config") or {"config_groups": {}})
    online: set[str] = set()
    for name, scheme in transforms.config_groups.items():
        scheme.apply = [args for args in scheme.apply if args.is_online()]
        online |= {f"{name}_{args.location}" for args in scheme.apply}
        TransformFactory.from_scheme(scheme, name=name).apply_to_model(model, use_tqdm=False)
    tensors = Tensors(folder)
    # Modules share a matrix: it is saved once, and copied in place.
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        if module.rpartition(".")[2] in online:
            with torch.no_grad():
                getattr(model.get_submodule(module), leaf).copy_(tensors.tensor(name))
