"""Policy files: YAML in which every key is given once, on top of the policies that they extend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quantaudit.common.outputs.claims import check_inputs
from quantaudit.common.reading.regular_files import RECIPE_BYTES, read_text, special_kind
from quantaudit.common.reading.yaml_document import read_yaml
from quantaudit.common.resources import resource_dir
from quantaudit.errors import FormatError
from quantaudit.policy.sections import Policy
from quantaudit.provenance import explain

HINT = "start from recipes/policies/default.yaml"
MOST_EXTENDED = 8
"""Policies that build on each other, at most: each has a reader."""


def load_policy(spec: str = "default") -> Policy:
    """A shipped policy by name, or a YAML file. Raises FormatError with every mistake in it.

    `extends: default` takes the sections that a policy does not give from another one, next to it or shipped.
    """
    path = _policy_path(spec)
    policy = _sections(path, ())[1]
    _check_name(policy, path)
    return policy


def _check_name(policy: Policy, path: Path) -> None:
    """A verdict names its policy: another one under a shipped name would be taken for that."""
    shipped = {file.stem: file for file in (resource_dir("recipes") / "policies").glob("*.yaml")}.get(policy.name)
    if shipped is not None and not _same(path, shipped) and policy != _sections(shipped, ())[1]:
        raise FormatError(
            f"is named `{policy.name}`, as a policy that is shipped, and is another",
            where=str(path),
            hint="give it a name of its own: `name: …`",
        )


def _sections(path: Path, extending: tuple[Path, ...]) -> tuple[dict[str, Any], Policy]:
    """The sections of a policy file, those of the policy that it extends filled in, and the policy that they are."""
    data, base = _read(path), None
    if not isinstance(data, dict):
        raise FormatError("not a policy: no sections", where=str(path), hint=HINT)
    if "extends" in data:
        filled, base = _base(data.pop("extends"), path, (*extending, path))
        data = {**filled, "name": path.stem, **data}
    try:
        policy = Policy.model_validate(data)
    except ValidationError as error:
        raise FormatError(f"not a policy: {explain(error)}", where=str(path), hint=HINT) from error
    return data, policy if base is None else policy.on(base)


def _base(spec: Any, path: Path, extending: tuple[Path, ...]) -> tuple[dict[str, Any], Policy]:
    """The policy that one extends. Raises FormatError, also where that leads back to one of those that extend it."""
    if not isinstance(spec, str) or not spec:
        raise FormatError("not a policy: extends: Input should be the name of a policy", where=str(path), hint=HINT)
    base = _policy_path(spec, path)
    if any(_same(base, one) for one in extending):
        raise FormatError(f"extends itself, by way of {base}", where=str(path), hint=HINT)
    if len(extending) >= MOST_EXTENDED:
        raise FormatError(f"extends more than {MOST_EXTENDED} policies in a row", where=str(path), hint=HINT)
    return _sections(base, extending)


def _same(a: Path, b: Path) -> bool:
    """Whether two spellings name one file: by link, by case, by detour."""
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):  # none there, or a name that no file can have
        return a == b


def _policy_path(spec: str, extending: Path | None = None) -> Path:
    if spec.endswith((".yaml", ".yml")):
        return Path(spec) if extending is None else extending.parent / spec
    shipped = resource_dir("recipes") / "policies" / f"{spec}.yaml"
    kind = special_kind(Path(spec))
    if not shipped.exists():
        problem = "no such policy" if kind is None else f"{kind}, not a file"
        raise FormatError(problem, where=spec, hint=HINT if kind else _choices())
    return shipped


def _choices() -> str:
    """What may be given for a policy."""
    shipped = ", ".join(f"`{file.stem}`" for file in sorted((resource_dir("recipes") / "policies").glob("*.yaml")))
    return f"{shipped}, or a .yaml file"


def _read(path: Path) -> Any:
    """What a file holds. Raises FormatError where it is missing, no text, no YAML, or gives a key twice."""
    check_inputs({"the policy": path})
    try:
        text = read_text(path, RECIPE_BYTES)
    except (OSError, ValueError) as error:
        problem = "no such policy" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise FormatError(problem, where=str(path), hint=_choices()) from error
    return read_yaml(text, str(path), FormatError).data
