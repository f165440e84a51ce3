"""The JSON Schema of card.json: `python -m tools.card_schema docs/card.schema.json` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.json_schema import GenerateJsonSchema

from quantaudit.card.schema import SCHEMA_VERSION, Card
from quantaudit.common.files import write_text


class _AllRequired(GenerateJsonSchema):
    """Describes what is written, not what may be read: a default makes no field optional."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return True


def schema_json() -> str:
    """Schema of what `dump_card` writes (every field present), as JSON text ending in a newline."""
    schema = Card.model_json_schema(mode="serialization", schema_generator=_AllRequired)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Activation card {SCHEMA_VERSION}"}
    body = {key: schema[key] for key in schema if key not in head}
    return json.dumps(head | body, indent=1, ensure_ascii=False) + "\n"


def main(
    path: Annotated[Path | None, typer.Argument(help="File to write; standard output without it.")] = None,
) -> None:
    """Write the JSON Schema of card.json."""
    if path is None:
        typer.echo(schema_json(), nl=False)
    else:
        write_text(path, schema_json())


if __name__ == "__main__":
    typer.run(main)
