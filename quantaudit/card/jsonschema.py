"""The JSON Schema of card.json. `python -m quantaudit.card.jsonschema docs/card.schema.json` publishes it anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from quantaudit.card.schema import SCHEMA_VERSION, Card
from quantaudit.common.files import write_text


class _Written(GenerateJsonSchema):
    """Of what is written, not of what may be read: a default makes no field optional."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return True


def schema_json() -> str:
    """Schema of what `dump_card` writes (every field present), as JSON text ending in a newline."""
    schema = Card.model_json_schema(mode="serialization", schema_generator=_Written)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Activation card {SCHEMA_VERSION}"}
    return (
        json.dumps(head | {key: schema[key] for key in schema if key not in head}, indent=1, ensure_ascii=False) + "\n"
    )


def main(arguments: list[str]) -> None:
    """Write the schema to the file named first, or to standard output."""
    if arguments:
        write_text(Path(arguments[0]), schema_json())
    else:
        sys.stdout.write(schema_json())


if __name__ == "__main__":
    main(sys.argv[1:])
