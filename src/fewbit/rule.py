"""Rules: which layers get which schemes and algorithm; what is a string in them is parsed here, once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fewbit.algorithms import Algorithm, parse_algorithm
from fewbit.algorithms.nearest import Nearest
from fewbit.catalogue import unknown
from fewbit.errors import RecipeError
from fewbit.integer_bias import BIAS_TYPES, BiasType
from fewbit.interfaces import LAYER_KINDS, Layer, LayerKind
from fewbit.name_pattern import NamePattern
from fewbit.ranges import OutputRange
from fewbit.ranges.average import Average
from fewbit.schemes.granularity import PerChannel, PerTile
from fewbit.schemes.notation import input_scheme_to_text, parse_input_scheme, parse_scheme
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, init=False)
class Rule:
    r"""What the layers that it matches get.

    >>> Rule(r".*\.mlp\..*", weight="int4 g64 asym").weight.symmetric
    False
    """

    #: Regular expression that the whole name of a layer must match; `None` matches every name.
    match: str | None
    #: Kind of layer; `None` matches every kind, but products inside attention only together with `keep`.
    kind: LayerKind | None
    #: Scheme of the weight; `None` together with `keep`, and of products inside attention, which have none.
    weight: Scheme | None
    #: Schemes of what goes in, of products inside attention both operands, and what comes out; `None`: it stays float.
    input: Scheme | None
    output: Scheme | None
    #: What its bias becomes: `int32` in units of input scale x weight scale.
    bias: BiasType
    #: How codes are found.
    algorithm: Algorithm
    #: The layer stays float.
    keep: bool
    #: Matching nothing is no error.
    optional: bool

    def __init__(  # noqa: PLR0913  # the fields of a rule
        self,
        match: str | None = None,
        *,
        kind: str | None = None,
        weight: str | Scheme | None = None,
        input: str | Scheme | None = None,  # noqa: A002
        output: str | Scheme | None = None,
        bias: str | None = None,
        algorithm: str | dict[str, Any] | Algorithm | None = None,
        keep: bool = False,
        optional: bool = False,
    ) -> None:
        _check_pattern(match)
        _check_strings(kind=kind, match=match, bias=bias)
        if kind is not None and kind not in LAYER_KINDS:
            raise RecipeError(unknown(kind, LAYER_KINDS, what="kind of layer"))
        if match is None and kind is None:
            raise RecipeError("a rule needs `match` (a regular expression) or `kind`; '.*' matches every layer")
        _check_flags(keep=keep, optional=optional)
        if keep and any(given is not None for given in (weight, input, output, bias, algorithm)):
            raise RecipeError(
                f"rule {match or kind!r:.120} says `keep` and also names a scheme, a bias or an algorithm; drop one"
            )
        _check_schemes(weight=weight, input=input, output=output)
        if kind == "attention":
            _check_no_weight(match, weight=weight, output=output, bias=bias, algorithm=algorithm)
        needed, own = ("input", input) if kind == "attention" else ("weight", weight)
        if not keep and own is None:
            raise RecipeError(f"rule {match or kind!r:.120} says neither `{needed}` nor `keep`; add one")
        values = {
            "match": match,
            "kind": kind,
            "weight": _scheme_of_weight(weight),
            "input": _scheme_of_activation(input, "input"),
            "output": _scheme_of_activation(output, "output"),
            "bias": _type_of_bias(bias),
            "algorithm": parse_algorithm(algorithm) if algorithm is not None else Nearest(),
            "keep": keep,
            "optional": optional,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def matches(self, layer: Layer) -> bool:
        """Whether this rule speaks of `layer`."""
        # A rule for layers in general speaks of weights, which a product inside attention has none of.
        every = self.kind is None and (self.keep or layer.kind != "attention")
        if not every and self.kind != layer.kind:
            return False
        return self.match is None or _pattern(self.match).fullmatch(layer.name)

    def __str__(self) -> str:
        where = [f"match {self.match!r}"] if self.match is not None else []
        where += [f"kind {self.kind!r}"] if self.kind is not None else []
        if self.keep:
            return f"{' and '.join(where)}: keep"
        if self.weight is None and self.input is not None:
            return f"{' and '.join(where)}: operands {input_scheme_to_text(self.input)}"
        further = [f", {name} {input_scheme_to_text(own)}" for name, own in self.activations.items()]
        further += [f", bias {self.bias}"] if self.bias != "float" else []
        return f"{' and '.join(where)}: {self.weight} by {self.algorithm.name}{''.join(further)}"

    @property
    def activations(self) -> dict[str, Scheme]:
        """The schemes of input and output, where they have one."""
        both = {"input": self.input, "output": self.output}
        return {name: scheme for name, scheme in both.items() if scheme is not None}


def keep(match: str | None = None, *, kind: str | None = None, optional: bool = False) -> Rule:
    """Return a rule under which layers stay float.

    >>> str(keep(kind="head"))
    "kind 'head': keep"
    """
    return Rule(match, kind=kind, keep=True, optional=optional)


def _scheme_of_weight(given: str | Scheme | None) -> Scheme | None:
    scheme = parse_scheme(given) if isinstance(given, str) else given
    if scheme is not None and scheme.static:
        raise RecipeError(f"weight = {str(given)!r}: a weight is known before calibration; leave out 'static'")
    return scheme


def _scheme_of_activation(given: str | Scheme | None, name: str) -> Scheme | None:
    scheme = parse_input_scheme(given) if isinstance(given, str) else given
    if scheme is None:
        return None
    if scheme.float_zero:
        raise RecipeError(f"{name} = {str(given)!r}: the zero point of an activation is a code; use asym")
    if scheme.span is not None:
        raise RecipeError(f"{name} = {str(given)!r}: GGUF's grids are for weights; use int8")
    if not scheme.static and isinstance(scheme.granularity, PerChannel | PerTile):
        raise RecipeError(f"{name} = {str(given)!r}: a dynamic range is per tensor, token or group; or add 'static'")
    if isinstance(scheme.ranging, OutputRange):
        raise RecipeError(
            f"{name} = {str(given)!r}: {scheme.ranging.name} ranges weights by the error of the layer's output; use mse"
        )
    if not scheme.static and scheme.ranging == Average():
        raise RecipeError(f"{name} = {str(given)!r}: an average is taken over batches; add 'static'")
    return scheme


def _type_of_bias(given: str | None) -> BiasType:
    if given not in (None, *BIAS_TYPES):
        raise RecipeError(unknown(str(given), BIAS_TYPES, what="type of a bias"))
    return given or "float"


def _check_flags(**flags: object) -> None:
    for flag, given in flags.items():
        if not isinstance(given, bool):
            raise RecipeError(f"{flag} = {given!r} is not true or false")


def _check_schemes(**schemes: object) -> None:
    for name, scheme in schemes.items():
        if not isinstance(scheme, str | Scheme | None):
            raise RecipeError(f'{name} = {scheme!r:.80} is no scheme; write for example {name}="int8"')


def _check_no_weight(match: str | None, **given: object) -> None:
    for name in (name for name, value in given.items() if value is not None):
        raise RecipeError(
            f"rule {match or 'attention'!r:.120}: `{name}` = {given[name]!r:.80}, and a product inside attention has "
            "no weight, no bias and no rounded output; give `input`, which is for both operands, only"
        )


def _check_strings(**values: object) -> None:
    for key, value in values.items():
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"{key} = {value!r:.80} is not text")


def _check_pattern(match: object) -> None:
    if isinstance(match, str):
        _pattern(match)


@lru_cache(maxsize=4096)
def _pattern(match: str) -> NamePattern:
    return NamePattern.of(match, f"match = {match!r:.80}", RecipeError)
