"""How codes are found for a weight: one paper a file, a callable frozen dataclass each, and `solve`.

An algorithm is `(weight (out, in), statistics, scheme) -> Solution`, a QTensor with what the report says of it; it
never sees a model.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from fewbit.algorithms.solution import Solution
from fewbit.catalogue import parse_entry
from fewbit.errors import NotYetError
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme

#: Algorithms by name.
ALGORITHMS = {
    "nearest": "fewbit.algorithms.nearest:Nearest",
    "gptq": "fewbit.algorithms.gptq:Gptq",
    "hqq": "fewbit.algorithms.hqq:Hqq",
    "autoround": "fewbit.algorithms.autoround:AutoRound",
    "adaround": "fewbit.algorithms.adaround:AdaRound",
    "brecq": "fewbit.algorithms.brecq:Brecq",
}
#: Algorithms of the design that this version does not have.
LATER = ("awq",)


class Algorithm(Protocol):
    """How codes are found for one weight."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """Which statistics of the layer's input it needs; empty: no calibration."""

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return the quantized `weight` (out, in); `statistics` are by name, as `self.statistics` asks for them."""


@runtime_checkable
class Selective(Protocol):
    """An algorithm that does not quantize to every scheme."""

    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""


@runtime_checkable
class Paired(Protocol):
    """An algorithm that looks at the float model beside the quantized one, if there is one."""

    @property
    def unpaired(self) -> Algorithm:
        """The form that does without, or itself where it was told not to."""


def unpaired(algorithm: Algorithm) -> Algorithm:
    """Return `algorithm` for a model that has no float one beside it."""
    return algorithm.unpaired if isinstance(algorithm, Paired) else algorithm


def problem_of(algorithm: Algorithm, scheme: Scheme) -> str | None:
    """Return why `algorithm` cannot quantize to `scheme`, with the remedy, or `None`."""
    return algorithm.problem(scheme) if isinstance(algorithm, Selective) else None


def parse_algorithm(value: str | dict[str, Any] | Algorithm) -> Algorithm:
    """Return the algorithm for a name, a table with `name` and options, or an algorithm.

    >>> parse_algorithm("nearest")
    Nearest(weighted=False, relative=True)
    """
    name = value.get("name") if isinstance(value, dict) else value
    if isinstance(name, str) and name in LATER:
        raise NotYetError(f"algorithm {name!r} is not in this version; use one of: {', '.join(ALGORITHMS)}")
    made: Algorithm = parse_entry(value, ALGORITHMS, what="algorithm", example="nearest")
    return made


def solve(weight: Array, scheme: Scheme, algorithm: str | Algorithm = "nearest", statistics: Any = None) -> QTensor:
    """Return `weight` (out, in), an array of any framework, quantized by `algorithm`, in the caller's framework."""
    return parse_algorithm(algorithm)(weight, statistics, scheme).qtensor
