"""A device called ``cuda`` where there is none: values lie on the CPU, but mixing devices fails as it would there.

Under :class:`PretendedGPU` a tensor moved to ``cuda`` is a wrapper around a CPU tensor. Every operation runs on the
inner tensors, after a check that no CPU tensor is among its arguments but for single numbers and indices, which a GPU
takes as well.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

GPU = torch.device("cuda", 0)
INDEXING = {"aten::index.Tensor", "aten::_unsafe_index.Tensor", "aten::index_put"}
INDEXING |= {"aten::index_put_", "aten::_index_put_impl_"}
PRODUCTS = (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul)


class OnGPU(torch.Tensor):
    """A tensor that says it is on ``cuda:0``."""

    @staticmethod
    def __new__(cls, inner):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device="meta", requires_grad=inner.requires_grad,
        )  # fmt: skip
        wrapper.inner = inner
        return wrapper

    def __init__(self, inner):
        pass

    @property
    def device(self):
        return GPU

    @property
    def is_cuda(self):
        return True

    def __repr__(self):
        return f"OnGPU({self.inner!r})"

    def tolist(self):
        return self.inner.tolist()

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@cache
def about(func):
    """Its name, and which of its arguments a GPU takes from anywhere: ``(name, index, moves, copies)``."""
    name = func._schema.name + ("." + func._schema.overload_name if func._schema.overload_name else "")
    copies = name.startswith(("aten::copy_", "aten::_local_scalar_dense"))
    return name, name in INDEXING, name.startswith("aten::_to_copy"), copies


def tensors_in(arguments):
    """Tensors among arguments, and in lists among them."""
    for x in arguments:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from tensors_in(x)


def mapped(change, x):
    """A tensor changed, or the tensors in a list."""
    if isinstance(x, torch.Tensor):
        return change(x)
    return type(x)(mapped(change, part) for part in x) if type(x) in (list, tuple) else x


def inner(x):
    return x.inner if isinstance(x, OnGPU) else x


def run(func, args, kwargs):
    tensors, wanted = [*tensors_in(args), *tensors_in(kwargs.values())], kwargs.get("device")
    on_gpu = any(isinstance(x, OnGPU) for x in tensors)
    if not on_gpu and wanted is None:
        return func(*args, **kwargs)
    name, index, moves, copies = about(func)
    if on_gpu and not copies and not (moves and wanted is not None):
        strays = [x for x in (args[:1] if index else tensors) if isinstance(x, torch.Tensor)]
        strays = [x for x in strays if not isinstance(x, OnGPU) and x.dim() > 0]
        if strays:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {name}, {[tuple(x.shape) for x in strays]}"
            )
    to_gpu = on_gpu if wanted is None else torch.device(wanted).type in ("cuda", "meta")
    plain = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    out = func(*(mapped(inner, x) for x in args), **{key: mapped(inner, x) for key, x in plain.items()})
    if func._schema.is_mutable and isinstance(out, torch.Tensor):
        changed = next((x for x in tensors if isinstance(x, OnGPU) and x.inner is out), None)
        if changed is not None and changed.shape == out.shape:  # squeeze_ and the like: a wrapper keeps its shape
            return changed
    return mapped(OnGPU, out) if to_gpu else out


class _Moves(TorchFunctionMode):
    """Calls that name ``cuda`` as a device, which torch itself would refuse here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cpu:
            return move(args[0], "cpu")
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return func(args[0], tree_map(as_index, args[1], is_leaf=lambda x: isinstance(x, (list, range))), *args[2:])
        if func in PRODUCTS and args[0].dim() == 1 and args[1].dim() == 2:  # torch's own way squeezes in place
            return func(args[0][None], args[1])[0]
        if func is torch.Tensor.cuda:
            return move(args[0], GPU)
        if func is torch.Tensor.to:
            return self.to(func, *args, **kwargs)
        if is_device(kwargs.get("device")) and torch.device(kwargs["device"]).type == "cuda":
            return move(func(*args, **kwargs | {"device": "cpu"}), GPU)
        return func(*args, **kwargs)

    @staticmethod
    def to(func, x, *args, device=None, other=None, **kwargs):
        args = list(args)
        if args and isinstance(args[0], torch.Tensor):
            other = args.pop(0)
        if args and is_device(args[0]):
            device = args.pop(0)
        if other is not None:
            device, kwargs = other.device, kwargs | {"dtype": other.dtype}
        dtype = next((a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype)), None)
        x = x if dtype is None else func(x, dtype)
        return x if device is None else move(x, device)


class _Factories(TorchDispatchMode):
    """Tensors that torch makes by itself where a wrapper is: it takes them for ones without values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def as_index(x):
    """Lists of places as tensors: torch would make them of a wrapper's kind, without values."""
    if not isinstance(x, (list, range)):
        return x
    return torch.tensor(list(x)) if len(x) else torch.tensor([], dtype=torch.long)


def is_device(x) -> bool:
    return isinstance(x, (str, torch.device)) and not isinstance(x, torch.dtype)


class _Move(torch.autograd.Function):
    """A copy to the other side that gradients go through."""

    @staticmethod
    def forward(ctx, x):
        return x.inner if isinstance(x, OnGPU) else OnGPU(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.inner if isinstance(gradient, OnGPU) else OnGPU(gradient)


def move(x, device):
    if (torch.device(device).type == "cuda") == isinstance(x, OnGPU):
        return x
    if x.requires_grad and torch.is_grad_enabled():
        return _Move.apply(x)
    return x.inner if isinstance(x, OnGPU) else OnGPU(x)


class PretendedGPU:
    """Within, ``cuda`` is a device like any other."""

    def __enter__(self):
        self._swap = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        self._modes = ExitStack()
        for mode in (_Factories(), _Moves()):
            self._modes.enter_context(mode)
        return self

    def __exit__(self, *error):
        self._modes.__exit__(*error)
        torch.__future__.set_swap_module_params_on_conversion(self._swap)
