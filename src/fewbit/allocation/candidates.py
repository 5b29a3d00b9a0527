"""What layers may become: notations, each with the rule that gives it to a layer.

A GGUF type whose blocks do not divide a layer's width gives way to the one that llama.cpp takes then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fewbit.algorithms import Algorithm, parse_algorithm, problem_of
from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.nearest import Nearest
from fewbit.errors import RecipeError
from fewbit.interfaces import Layer
from fewbit.rule import Rule
from fewbit.schemes.gguf import FALLBACKS, scheme_of
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme

#: What a layer is that no candidate is chosen for.
FLOAT = "float"
#: Without other wishes: 3 bits and more, in groups that most widths are multiples of.
USUAL = ("int3 g64", "int4 g64", "int5 g64", "int6 g64", "int8 g64")
#: The same for GGUF files: types of 256 columns, and what takes their place in layers of other widths.
USUAL_GGUF = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")
#: Kinds of layers that are rounded to nearest: an embedding picks rows, and a head is as large as many layers.
_NEAREST = ("embedding", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What layers may become, and how codes are found."""

    names: tuple[str, ...]
    #: Of linear layers; heads and embeddings are rounded to nearest.
    algorithm: Algorithm = field(default_factory=lambda: Gptq(guided=True))
    #: What their inputs are rounded to, with every candidate.
    input: str | None = None

    @classmethod
    def parse(cls, value: Any, algorithm: Any = None, given: str | None = None, *, gguf: bool = False) -> Candidates:
        """Return the candidates for a list of notations, or a text with commas between them; `None`: the usual.

        Raises:
            RecipeError, SchemeError: no candidate, or a notation that makes no sense.

        """
        usual = USUAL_GGUF if gguf else USUAL
        names: Sequence[Any] = usual if value is None else value.split(",") if isinstance(value, str) else list(value)
        texts = [str(name).strip() for name in names]
        if not texts or not all(texts):
            raise RecipeError(f'candidates {value!r:.80} hold no scheme; give for example "int3 g64,int4 g64,int8 g64"')
        known = {text: text if text == FLOAT else str(parse_scheme(text)) for text in texts}
        if all(own == FLOAT for own in known):
            raise RecipeError("float is the only candidate; add a scheme such as int4 g64")
        found = tuple(dict.fromkeys(known.values()))
        own = Gptq(guided=True) if algorithm is None else parse_algorithm(algorithm)
        return cls(names=found, algorithm=own, input=given)

    def rule(self, name: str, layer: Layer, match: str) -> Rule:
        """Return what makes a `layer` the candidate `name`; `match` says which layers it is for.

        Raises:
            SchemeError: it is `float`.

        """
        scheme = self.scheme(name, layer)
        return Rule(match, weight=scheme, input=self.input, algorithm=self._algorithm(layer, scheme))

    def scheme(self, name: str, layer: Layer) -> Scheme:
        """Return the scheme that `layer` gets of a candidate: a fallback where a GGUF type does not divide it."""
        scheme = parse_scheme(name)
        if scheme.span is not None and layer.shape[1] % scheme.span and name in FALLBACKS:
            return scheme_of(FALLBACKS[name].upper())
        return scheme

    def _algorithm(self, layer: Layer, scheme: Scheme) -> Algorithm:
        if layer.kind in _NEAREST or not layer.multiplies_rows:
            weighted = Nearest(weighted=True)
            searches = layer.kind == "head" and not layer.tied and not weighted.problem(scheme)
            return weighted if searches else Nearest()
        # Gradients of convolutions are not taken.
        guided = isinstance(self.algorithm, Gptq) and self.algorithm.guided
        own = Gptq() if guided and layer.kind == "conv" else self.algorithm
        return Nearest() if problem_of(own, scheme) else own
