"""What a quantization_config says of rotations (`transform_config`): which modules they apply to, under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressed_tensors.transform import TransformConfig
from compressed_tensors.utils.match import match_name
from pydantic import ValidationError

from quantaudit.common.reading.patterns import slow_pattern
from quantaudit.provenance import ModuleInfo


def rotations(settings: Any, modules: Mapping[str, ModuleInfo]) -> dict[str, list[str]] | None:
    """Modules that a transform_config applies to, and the submodules it gives them (`v_input`).

    None where it is none of compressed-tensors', or has patterns that take too long.
    """
    try:
        config = TransformConfig.model_validate(settings)
    except ValidationError:
        return None
    places = [(key, place) for key, scheme in config.config_groups.items() for place in scheme.apply]
    if slow_pattern([pattern for _, place in places for pattern in (*place.targets, *place.ignore)], modules):
        return None
    found: dict[str, list[str]] = {}
    for name, info in modules.items():
        for key, place in places:
            if _applies(place.targets, name, info) and not _applies(place.ignore, name, info):
                # As `TransformFactory` of compressed-tensors names them.
                found.setdefault(name, []).append(f"{key}_{place.location}")
    return found


def _applies(targets: Sequence[str], name: str, info: ModuleInfo) -> bool:
    return any(match_name(name, target) or target in info.classes for target in targets)
