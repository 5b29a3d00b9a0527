"""What XLA made of the products of a compiled function: the types that are multiplied, and by what kernel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

#: What YNNPACK's fusions are called in a program; other products are Eigen's of floats, or loops of integers.
_YNNPACK = "__ynn_fusion"
_FUSION = re.compile(r" fusion\(.*calls=%([\w.\-]+)")
_PRODUCT = re.compile(r" = (\w+)\[[\d,]*\]\S* dot\(%([\w.\-]+), %([\w.\-]+)\)")
_CALL = re.compile(r'custom_call_target="([^"]*(?:matmul|dot|gemm)[^"]*)"')


@dataclass(frozen=True)
class Program:
    """A compiled function."""

    #: How often each kind of product is in it, such as `s8 x s8 -> s32, YNNPACK`.
    products: Counter[str]
    #: Memory that it takes besides arguments and results.
    temporary_bytes: int

    @classmethod
    def of(cls, function: Callable[..., Any], *given: Any) -> Program:
        """Return the program of `function` for these arguments."""
        compiled = jax.jit(function).lower(*given).compile()
        return cls(products_of(compiled.as_text()), compiled.memory_analysis().temp_size_in_bytes)

    def __str__(self) -> str:
        kinds = "; ".join(f"{count} x ({kind})" for kind, count in sorted(self.products.items()))
        return f"{kinds}; {self.temporary_bytes / 1e6:.1f} MB of temporary memory"


def products_of(text: str) -> Counter[str]:
    """Return how often each kind of product is in the text of a compiled program."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%([\w.\-]+) [^\n]*\{\n(.*?)\n\}", text, re.S | re.M))
    by_kernel = {match[1] for line in text.splitlines() if _YNNPACK in line and (match := _FUSION.search(line))}
    found: Counter[str] = Counter()
    for name, body in bodies.items():
        types = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", body))
        for result, left, right in _PRODUCT.findall(body):
            kinds = f"{types[left]} x {types[right]} -> {result}"
            own = "YNNPACK" if name in by_kernel else "Eigen" if result.startswith(("f", "bf")) else "loops"
            found[f"{kinds}, {own}"] += 1
        found.update(f"call of {target}" for target in _CALL.findall(body))
    return found
