"""Taps a model's tensors with hooks that are removed whatever happens. Who runs the forward is another's business."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from quantaudit.errors import MeasurementError
from quantaudit.model.forward.hooks import Arguments, InputWatcher, Keywords, OutputWatcher, watch_inputs, watch_outputs
from quantaudit.model.structure import FUSED_GATE
from quantaudit.provenance import SiteInfo

Receiver = Callable[[str, Tensor], None]
"""Called with a site's name and its tensor, [batch, tokens, channels], at each firing."""
Refuser = Callable[[str, MeasurementError], None]
"""Called with a site's name where its module was given, or returned, no tensor that is understood."""


@contextmanager
def capture(
    model: nn.Module, sites: Sequence[SiteInfo], receive: Receiver, refuse: Refuser | None = None
) -> Iterator[Counter[str]]:
    """Tap every site while the context lasts. Yields how often each tapped module fired, by full path.

    A site with several members is received once, from its first member; the others are only counted. One that is
    merged from others (`parts`) is not tapped itself, one of several `modules` is received from each. Without
    `refuse`, a tensor that is not understood raises MeasurementError.
    """
    fired: Counter[str] = Counter()
    with ExitStack() as stack:
        for site in sites:
            if site.parts:
                continue
            for path in site.modules or [site.module]:
                module = model.get_submodule(path)
                stack.enter_context(
                    watch_inputs(module, _input_hook(site, receive, fired, refuse))
                    if site.tap == "input"
                    else watch_outputs(module, _output_hook(site, receive, fired, _selector(site, module), refuse))
                )
            for member in site.members[1:]:
                stack.enter_context(watch_inputs(model.get_submodule(member), _counting_hook(member, fired)))
        yield fired


@contextmanager
def calls(model: nn.Module, paths: Iterable[str]) -> Iterator[Counter[str]]:
    """Count how often the modules at these paths are called while the context lasts."""
    called: Counter[str] = Counter()
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(watch_inputs(model.get_submodule(path), _counting_hook(path, called)))
        yield called


def first_tensor(values: Any) -> Tensor:
    """The hidden states among a module's arguments or outputs: the tensor itself, or the first one of several.

    Raises MeasurementError where there is none.
    """
    if isinstance(values, Tensor):
        return values
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple | list) else ()
    tensor = next((value for value in parts if isinstance(value, Tensor)), None)
    if tensor is None:
        raise MeasurementError(f"no tensor in a {type(values).__name__}")
    return tensor


def with_first_tensor(values: Any, tensor: Tensor) -> Any:
    """A module's outputs with other hidden states."""
    if isinstance(values, Tensor):
        return tensor
    parts = list(values.values() if isinstance(values, Mapping) else values)
    parts[next(i for i, value in enumerate(parts) if isinstance(value, Tensor))] = tensor
    return with_parts(values, parts)


def with_parts(values: Any, parts: Iterable[Any]) -> Any:
    """A module's outputs with other parts, as named as they were: models read them by name (Reformer)."""
    if isinstance(values, Mapping):
        return type(values)(**dict(zip(values, parts, strict=True)))
    make = getattr(values, "_make", tuple)
    return make(parts)


def _input_hook(site: SiteInfo, receive: Receiver, fired: Counter[str], refuse: Refuser | None) -> InputWatcher:
    def hook(_module: nn.Module, args: Arguments, kwargs: Keywords) -> None:
        fired[site.module] += 1
        if args and isinstance(args[0], Tensor):  # as nearly all are called
            receive(site.name, args[0])
        else:
            _hand_over(site, lambda: first_tensor((*args, *kwargs.values())), receive, refuse)

    return hook


def _output_hook(
    site: SiteInfo,
    receive: Receiver,
    fired: Counter[str],
    select: Callable[[Any], Tensor],
    refuse: Refuser | None,
) -> OutputWatcher:
    def hook(_module: nn.Module, _args: Arguments, _kwargs: Keywords, output: Any) -> None:
        fired[f"{site.module}:output"] += 1
        _hand_over(site, lambda: select(output), receive, refuse)

    return hook


def _hand_over(site: SiteInfo, select: Callable[[], Tensor], receive: Receiver, refuse: Refuser | None) -> None:
    try:
        tensor = select()
    except MeasurementError as error:
        if refuse is None:
            raise
        refuse(site.name, error)
    else:
        receive(site.name, tensor)


def _selector(site: SiteInfo, module: nn.Module) -> Callable[[Any], Tensor]:
    """What to take of a module's output: of a router its logits over the experts, of a fused gate and up the gate."""
    if site.kind == "gate" and site.module.rpartition(".")[2] == FUSED_GATE:
        return lambda output: first_tensor(output).chunk(2, -1)[0]
    if site.kind != "router_logits":
        return first_tensor
    width = len(module.weight)  # type: ignore[arg-type]
    return lambda output: router_logits(output, width)


def router_logits(output: Any, experts: int) -> Tensor:
    """The logits [..., experts] in a router's output: logits alone, (logits, weights, indices), (scores, logits) or
    (indices, weights, logits). Weights and indices have one column for each chosen expert, which are fewer.
    """
    values = [output] if isinstance(output, Tensor) else list(output)
    wide = [x for x in values if isinstance(x, Tensor) and x.is_floating_point() and x.shape[-1] == experts]
    if not wide:
        raise MeasurementError(f"a router returned no tensor of {experts} columns, one for each expert")
    return wide[-1]


def _counting_hook(member: str, fired: Counter[str]) -> InputWatcher:
    def hook(_module: nn.Module, _args: Arguments, _kwargs: Keywords) -> None:
        fired[member] += 1

    return hook
