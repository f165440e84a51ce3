"""A device other than main memory, pretended: its tensors are computed here, and mix with others as little as there.

A stray operation between a tensor on the device and one in main memory raises, as an accelerator's would, and so does
reading memory of the device from NumPy. It is called as the first GPU is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
NAME = "a pretended GPU"
"""What it calls itself."""
CPU = torch.device("cpu")
aten: Any = torch.ops.aten
_BETWEEN = {aten.copy_.default, aten._to_copy.default}
"""Copies, which go from any device to any other."""
_BY_HOST_INDEX = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""What takes indices from main memory for a tensor anywhere."""


class Remote(torch.Tensor):
    """A tensor on the device. here: what it holds, in main memory."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Remote:
        made: Remote = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            # Python never sees its name: PyTorch's own code has no guard for devices that are not there.
            device="meta",
            requires_grad=here.requires_grad,
        )
        made.here = here
        return made

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_with_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_with_tensors(index), value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Remote:
        copy = Remote(self.here.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, requires_grad=self.requires_grad)
        memo[id(self)] = copy
        return copy  # type: ignore[return-value]

    def tolist(self) -> Any:
        return self.here.tolist()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()

    def __repr__(self, **_options: Any) -> str:
        return f"Remote({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def _with_tensors(index: Any) -> Any:
    """An index without lists of numbers, of which PyTorch would make tensors where nothing is."""
    if isinstance(index, tuple):
        return tuple(map(_with_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


class PretendDevice(TorchDispatchMode):
    """Makes tensors on the device where they are asked for. copies: how often values came back to main memory."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation where its tensors are, or where it is told to; raises RuntimeError where they are apart."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    remote = [tensor for tensor in tensors if isinstance(tensor, Remote)]
    asked = kwargs.get("device")
    if asked is not None and torch.device(asked).type == "meta" and torch.get_default_device().type != "meta":
        asked = DEVICE  # what PyTorch makes of its own accord, such as a mask or a gradient, where it is given none
    target = torch.device(asked).type if asked is not None else (DEVICE.type if remote else CPU.type)
    if remote and func not in _BETWEEN:
        data = args[:1] if func in _BY_HOST_INDEX else (args, kwargs)
        stray = [
            leaf
            for leaf in tree_leaves(data)
            if isinstance(leaf, Tensor) and not isinstance(leaf, Remote) and leaf.ndim
        ]
        if any(tensor.is_meta for tensor in tensors):
            raise RuntimeError(f"{func}: a tensor without values among those on {DEVICE}")
        if stray:
            raise RuntimeError(f"{func}: tensors are on {DEVICE} and in main memory, {tuple(stray[0].shape)}")
    if asked is not None:
        kwargs = {**kwargs, "device": asked if target != DEVICE.type else CPU}
    inside_args, inside = tree_map(lambda leaf: leaf.here if isinstance(leaf, Remote) else leaf, (args, kwargs))
    result = func(*inside_args, **inside)
    if target != DEVICE.type or (func is aten.copy_.default and not isinstance(args[0], Remote)):
        return args[0] if func is aten.copy_.default else result
    wrapped = tree_map(lambda leaf: Remote(leaf) if isinstance(leaf, Tensor) else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if remote else wrapped


class _RemoteGenerator(torch.Generator):
    """Random numbers of the device: those of a processor."""

    device = property(lambda self: DEVICE)  # type: ignore[assignment]


_HOST_GENERATOR = torch.Generator


def _generator(device: torch.device | str = CPU) -> torch.Generator:
    return (_RemoteGenerator if torch.device(device).type == DEVICE.type else _HOST_GENERATOR)(CPU)


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Within the context there is the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "get_device_name", lambda *_device: NAME)
        patch.setattr(torch, "Generator", _generator)
        patch.setattr(torch.accelerator, "is_available", lambda: True)
        patch.setattr(torch.accelerator, "current_accelerator", lambda *_check: DEVICE)
        patch.setattr(torch.accelerator, "synchronize", lambda *_device: None)
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)
        patch.setattr(torch.accelerator, "get_memory_info", lambda *_device: (1 << 33, 1 << 34))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` asks the mode where a list of numbers goes
        try:
            with PretendDevice():
                yield DEVICE
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            torch.__future__.set_overwrite_module_params_on_conversion(False)
