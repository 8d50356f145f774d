"""Which operations have no answer for sizes that are symbols: a program for pictures of every size cannot be made of
them."""

from __future__ import annotations

import re

import torch
from torch import SymInt, Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

TRIED: dict[OpOverload, str] = {  # what was wrong with it, or ""
    torch.ops.aten.upsample_bilinear2d_backward.default: "",  # no compiler meets it: its forward is taken apart before
}


class Symbolic(TorchDispatchMode):
    """Notes every operation that runs and that cannot be told of its sizes as symbols, the first time that it is met by
    any of these."""

    def __init__(self):
        super().__init__()
        self.faults: dict[str, str] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in TRIED:
            TRIED[func] = tried(func, args, kwargs)
        if TRIED[func]:
            self.faults[str(func)] = TRIED[func]
        return func(*args, **kwargs)


def tried(func: OpOverload, args: tuple, kwargs: dict) -> str:
    """What goes wrong where every side of the tensors, and every size that is equal to one, is a symbol."""
    fake = FakeTensorMode(shape_env=ShapeEnv())
    sides: dict[int, SymInt] = {}

    def made(x):
        if not isinstance(x, Tensor):
            return x
        twin = fake.from_tensor(x.detach())
        sides.update(zip(x.shape, twin.shape))
        return twin

    def sized(x):
        return sides.get(x, x) if type(x) is int else x

    args, kwargs = tree_map(made, (args, kwargs))
    sizes = re.findall(r"SymInt\S* (\w+)", str(func._schema))
    args = tuple(tree_map(sized, x) if a.name in sizes else x for x, a in zip(args, func._schema.arguments))
    if not any(isinstance(x, Tensor) for x in tree_leaves((args, kwargs))):
        return ""
    try:
        with enable_python_dispatcher(), fake:
            func(*args, **kwargs)
    except Exception as error:  # whatever it is, the compiler would meet it
        return f"{type(error).__name__}: {error}"
    return ""
