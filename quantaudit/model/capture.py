"""Taps a model's tensors with hooks that are removed whatever happens. Who runs the forward is another's business."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from quantaudit.provenance import SiteInfo

Receiver = Callable[[str, Tensor], None]
"""Called with a site's name and its tensor, [batch, tokens, channels], at each firing."""


@contextmanager
def capture(model: nn.Module, sites: Sequence[SiteInfo], receive: Receiver) -> Iterator[Counter[str]]:
    """Tap every site while the context lasts. Yields how often each tapped module fired, by full path.

    A site with several members is received once, from its first member; the others are only counted.
    """
    fired: Counter[str] = Counter()
    with ExitStack() as stack:
        for site in sites:
            module = model.get_submodule(site.module)
            handle = (
                module.register_forward_pre_hook(_input_hook(site, receive, fired), with_kwargs=True)
                if site.tap == "input"
                else module.register_forward_hook(_output_hook(site, receive, fired))
            )
            stack.callback(handle.remove)
            for member in site.members[1:]:
                counter = model.get_submodule(member).register_forward_pre_hook(_counting_hook(member, fired))
                stack.callback(counter.remove)
        yield fired


def first_tensor(values: Any) -> Tensor:
    """The hidden states among a module's arguments or outputs: the tensor itself, or the first one of a tuple."""
    if isinstance(values, Tensor):
        return values
    return next(value for value in values if isinstance(value, Tensor))


def _input_hook(site: SiteInfo, receive: Receiver, fired: Counter[str]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        fired[site.module] += 1
        receive(site.name, first_tensor((*args, *kwargs.values())))

    return hook


def _output_hook(site: SiteInfo, receive: Receiver, fired: Counter[str]) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        fired[f"{site.module}:output"] += 1
        receive(site.name, first_tensor(output))

    return hook


def _counting_hook(member: str, fired: Counter[str]) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any) -> None:
        fired[member] += 1

    return hook
