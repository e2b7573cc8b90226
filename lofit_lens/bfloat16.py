"""bfloat16 on processors that cannot multiply it.

Where a processor has no instructions for it (x86 with AVX2, but without AVX-512), torch multiplies bfloat16 matrices one number
after the other: 8 times as slowly as float32 in a forward pass, 60 times where gradients are computed (one thread). Inside
`products_in_float32`

    product(a, b)  =  bfloat16(product(float32(a), float32(b)))

which is what those instructions compute: they add up in float32, too. The order of summands is another, so that results differ
as those of any two processors do. Studies compute so; a run's environment says which instructions there were
(`cpu_capability`).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
)


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether models are many times slower in that dtype on that device than in float32."""
    return dtype == torch.bfloat16 and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def products_in_float32(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, matrices of bfloat16 are multiplied in float32 where that is faster; forward and backward, in this thread."""
    return _InFloat32() if is_slow(dtype, device) else nullcontext()


class _InFloat32(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _PRODUCTS or not any(_is_short(arg) for arg in args):
            return func(*args, **(kwargs or {}))
        return func(*(arg.float() if _is_short(arg) else arg for arg in args), **(kwargs or {})).bfloat16()


def _is_short(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
