"""For products in which of the 16-bit types the processor or GPU at hand has instructions of its own.

x86: AVX512-BF16; AVX512-FP16 or AMX-FP16. NVIDIA: tensor cores of compute capability 8.0; 7.0.
"""

from __future__ import annotations

from functools import cache

from fewbit.numerics.sixteen_bits import Type

#: Instructions of x86 processors that multiply the type.
_INSTRUCTIONS = {"bfloat16": ("avx512_bf16",), "float16": ("avx512_fp16", "amx_fp16")}
#: Compute capability from which tensor cores do.
_CAPABILITY = {"float16": (7, 0), "bfloat16": (8, 0)}


def multiplies(dtype: Type, device: str) -> bool:
    """Whether a torch device multiplies numbers of this type by instructions of its own."""
    import torch

    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= _CAPABILITY[dtype]
    return device == "cpu" and any(name in of_processor() for name in _INSTRUCTIONS[dtype])


def halves(precision: str, device: str) -> bool:
    """Whether products are taken in bfloat16: `auto` where a torch device multiplies it by instructions of its own."""
    return precision == "bfloat16" or (precision == "auto" and multiplies("bfloat16", device))


@cache
def of_processor() -> frozenset[str]:
    """Return what torch knows of this processor."""
    import torch

    return frozenset(name for name, there in torch.cpu.get_capabilities().items() if there is True)
