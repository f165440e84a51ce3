"""Published peaks as records: what `peaks.json` holds. Magnitudes are in the units of the activation, signs kept."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from quantaudit.provenance import Row
from quantaudit.quantities import Number, Positive

DATA = Path(__file__).with_name("peaks.json")
COMPONENTS = ("attention_output", "mlp_output", "hidden")
"""Tensors of a layer in the order in which it computes them, by the paper's names."""


class PeakSite(Row):
    """The largest magnitude of a set of tensors. component: the paper's name; layer: None outside the layers."""

    component: str
    layer: int | None
    value: float = Field(description="with its sign")

    @property
    def site(self) -> str:
        """Such as `layer 5 hidden`, as cards name it."""
        name = {"final_norm": "final norm"}.get(self.component, self.component)
        return name if self.layer is None else f"layer {self.layer} {name}"


class PublishedModel(Row):
    """A checkpoint's peaks: outside the layers one value a component, inside one a layer, null where there is none."""

    model: str = Field(min_length=1)
    model_type: str
    family: str | None = Field(default=None, description="as the paper groups its checkpoints; null if unknown")
    main: bool = Field(default=False, description="whether it is one of the paper's 24 main checkpoints")
    declared_layers: Positive = Field(description="as configured: blocks that predict further tokens apart")
    hidden_size: Positive
    samples: Positive
    max_length: Positive
    outside: dict[str, Number] = Field(description="`embedding` and `final_norm`: value of the largest magnitude")
    layers: dict[str, list[Number]] = Field(description="component → value of the largest magnitude, by layer")
    top: list[float] = Field(description="the five highest elements of all tensors, by falling magnitude")

    def sites(self) -> Iterator[PeakSite]:
        """Every tensor with a finite peak, in the order in which the model computes them."""
        if (embedding := self.outside.get("embedding")) is not None:
            yield PeakSite(component="embedding", layer=None, value=embedding)
        for layer in range(max((len(values) for values in self.layers.values()), default=0)):
            for component, values in self.layers.items():
                if layer < len(values) and (value := values[layer]) is not None:
                    yield PeakSite(component=component, layer=layer, value=value)
        if (norm := self.outside.get("final_norm")) is not None:
            yield PeakSite(component="final_norm", layer=None, value=norm)

    def largest(self, component: str | None = None) -> PeakSite | None:
        """The paper's M, or that of one component; the first one computed where several reach it."""
        sites = [site for site in self.sites() if component in (None, site.component)]
        return max(sites, key=lambda site: abs(site.value), default=None)


class PublishedSubset(Row):
    """One random part of the corpus, over which a checkpoint was measured again."""

    model: str
    samples: Positive
    repeat: int = Field(ge=0)
    value: float = Field(description="M of this part, with its sign")


class Published(Row):
    """All that is published, and where it was taken from."""

    source: str
    repository: str
    revision: str
    models: list[PublishedModel]
    subsets: list[PublishedSubset]


@functools.cache
def published() -> Published:
    """What the package ships, read once."""
    return Published.model_validate(json.loads(DATA.read_text(encoding="utf-8")))


def find(name: str) -> PublishedModel | None:
    """A published checkpoint by its name, whatever its case; None where there is none."""
    return next((row for row in published().models if row.model.casefold() == name.casefold()), None)
