"""What one layer becomes under a plan: its schemes, its bytes before and after, and why."""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.algorithms import Algorithm
from fewbit.corrections import Correction
from fewbit.integer_bias import BiasType
from fewbit.interfaces import Layer
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """What one layer becomes."""

    layer: Layer
    #: `None`: the weight stays float.
    scheme: Scheme | None
    #: How codes are found; `None` for a kept layer.
    algorithm: Algorithm | None
    #: Bytes, stored as floats, of the weight and of a bias that is quantized; a tied weight counts at one layer.
    bytes_before: int
    #: Bytes of what the file will hold for it.
    bytes_after: int
    #: The scheme that its rule names; `scheme` may have been adapted from it.
    asked: Scheme | None = None
    #: Schemes of its input, of a product inside attention of both operands, and output; `None`: they stay float.
    input: Scheme | None = None
    output: Scheme | None = None
    #: What its bias becomes; `float` where there is none.
    bias: BiasType = "float"
    #: What repairs it once its weight is rounded.
    corrections: tuple[Correction, ...] = ()
    #: The layers of its module that it shares a global scale with, since they are given the same.
    fused: tuple[str, ...] = ()
    #: The layer tied to it that is quantized to the very same codes; `None`: there is none before it.
    shared: str | None = None
    #: Why it is kept, what it is tied to.
    notes: tuple[str, ...] = ()
    #: What would overflow the cast that its rule names, for which it is kept; `None`: nothing that is known.
    overflow: str | None = None

    @property
    def becomes(self) -> str:
        """The notation of its schemes, or `float`."""
        if self.input and self.layer.kind == "attention":
            return f"operands {input_scheme_to_text(self.input)}"
        both = {"input": self.input, "output": self.output}
        rounded = [f", {name} {input_scheme_to_text(scheme)}" for name, scheme in both.items() if scheme]
        rounded += [f", bias {self.bias}"] if self.bias != "float" else []
        return f"{self.scheme}{''.join(rounded)}" if self.scheme else "float"
