"""What machines run fast: the time that a multiply-accumulate takes on them under a scheme, relative to 16 bits.

Imports no torch. The shipped table is recipes/hardware/machines.yaml, with its sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from quantaudit.common.outputs.claims import check_inputs
from quantaudit.common.reading.regular_files import RECIPE_BYTES, read_text
from quantaudit.common.reading.yaml_document import read_yaml
from quantaudit.common.resources import resource_dir
from quantaudit.errors import FormatError, UsageError
from quantaudit.provenance import Row, explain
from quantaudit.simulate.records import SchemeInfo

Operands: TypeAlias = Literal["weights_only", "int8", "fp8", "mxfp8", "int4", "nvfp4", "mxfp4", "int4_int8", "int4_fp8"]
"""What is multiplied: weights by inputs, named once where they are alike; `weights_only` are unpacked to 16 bits."""
PRESETS: dict[Operands, str] = {
    "weights_only": "W4A16",
    "int8": "W8A8",
    "fp8": "FP8_DYNAMIC",
    "mxfp8": "MXFP8",
    "int4": "W4A4",
    "nvfp4": "NVFP4",
    "mxfp4": "MXFP4",
    "int4_int8": "W4A8",
    "int4_fp8": "W4AFP8",
}
"""A scheme of llm-compressor's for each."""
HINT = (
    "as in recipes/hardware/machines.yaml: under a name `devices`, `mac_time` by operands (numbers such as 0.5: "
    "YAML reads 5e-1 as text), `reason`"
)
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.+-]{0,60}$")]
"""Of a machine: it is written into recipes and terminals."""


class Hardware(Row):
    """A machine. name: in its table. mac_time: of what it runs, relative to 16 bits. reason: where that is from."""

    name: str = ""
    devices: Annotated[str, Field(min_length=1)]
    mac_time: dict[Operands, Annotated[float, Field(gt=0, le=100, allow_inf_nan=False, strict=True)]] = Field(
        min_length=1
    )
    reason: Annotated[str, Field(min_length=1)]

    def time_of(self, info: SchemeInfo | None) -> float | None:
        """Of one multiply-accumulate; None where the machine does not run the scheme. info: None for 16 bits."""
        operands = None if info is None or info.weights is None else operands_of(info)
        return 1.0 if operands is None else self.mac_time.get(operands)  # type: ignore[call-overload]


def operands_of(info: SchemeInfo) -> str:
    """What a scheme with weights multiplies, in the words of a table; of what has no word there, its own."""
    if info.input_activations is None:
        return "weights_only"
    weights, inputs = _operand(info.weights or {}), _operand(info.input_activations)
    return weights if weights == inputs else f"{weights}_{inputs}"


def _operand(args: Mapping[str, Any]) -> str:
    """`int8`, `nvfp4` of quantization arguments; what is absent is compressed_tensors' own default."""
    kind, bits, strategy = args.get("type", "int"), int(args.get("num_bits", 8)), args.get("strategy")
    if kind != "float":
        return f"int{bits}"
    if strategy == "tensor_group":
        return f"nvfp{bits}"
    return f"mxfp{bits}" if strategy == "group" and args.get("group_size") == 32 else f"fp{bits}"


def load_hardware(spec: str) -> Hardware:
    """A machine of the shipped table by name, or the one of a YAML file. Raises FormatError, UsageError."""
    if spec.endswith((".yaml", ".yml")):
        machines = _table(Path(spec))
        if len(machines) != 1:
            raise FormatError(f"holds {len(machines)} machines, not one", where=spec, hint=HINT)
        return next(iter(machines.values()))
    machines = shipped_hardware()
    if spec not in machines:
        raise UsageError("no such machine", where=f"--hardware {spec}", hint=f"{_choices(machines)}, or a .yaml file")
    return machines[spec]


def shipped_hardware() -> dict[str, Hardware]:
    """The table that is shipped, by name."""
    return _table(resource_dir("recipes") / "hardware" / "machines.yaml")


def _choices(machines: Mapping[str, Hardware]) -> str:
    return f"one of {', '.join(machines)}"


def _table(path: Path) -> dict[str, Hardware]:
    check_inputs({"--hardware": path})
    try:
        text = read_text(path, RECIPE_BYTES)
    except (OSError, ValueError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise FormatError(problem, where=str(path), hint=HINT) from error
    data = read_yaml(text, str(path), FormatError).data
    try:
        rows = TypeAdapter(dict[Name, Hardware]).validate_python(data)
    except ValidationError as error:
        raise FormatError(f"not a table of hardware: {explain(error)}", where=str(path), hint=HINT) from error
    return {name: row.model_copy(update={"name": name}) for name, row in rows.items()}
