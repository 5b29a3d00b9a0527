"""Presets: recipes by name. Head, embedding and routers stay float; group sizes adapt to the model, and to the file.

`wNa16` means N-bit weights and 16-bit activations; bare names round the inputs too, `-static` by fixed ranges. Up to 4
bits weights are found by GPTQ guided by gradients, which measured best, but for `nf4`, which is to need no data so that
a model can be rounded while it is loaded. Above that rounding to nearest leaves little and needs no data, but for
convolutions: where ranges are fixed data is there anyway, and GPTQ leaves a quarter of the noise.
"""

from __future__ import annotations

from pathlib import Path

from fewbit.algorithms import Algorithm
from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.nearest import Nearest
from fewbit.catalogue import unknown
from fewbit.errors import RecipeError, SchemeError
from fewbit.recipe import Recipe
from fewbit.rule import Rule, keep
from fewbit.schemes.gguf import scheme_of
from fewbit.schemes.notation import parse_scheme

#: Schemes of the linear layers and convolutions by preset, of the weight and of the input.
PRESETS: dict[str, tuple[str, str | None]] = {
    "w8a16": ("int8 channel", None),
    "w4a16": ("int4 g128", None),
    "w4a16-asym": ("int4 g128 asym", None),
    "w3a16": ("int3 g128", None),
    "w2a16": ("int2 g128", None),
    "fp8a16": ("e4m3 channel", None),
    "w8a8": ("int8 channel", "int8 token asym"),
    "w8a8-static": ("int8 channel", "int8 tensor asym static"),
    "w4a8": ("int4 g128", "int8 token asym"),
    "fp8": ("e4m3 channel", "e4m3 token"),
    "fp8-static": ("e4m3 tensor", "e4m3 tensor static"),
    "mxfp4a16": ("mxfp4", None),
    "nvfp4a16": ("nvfp4", None),
    "nf4": ("nf4 g64", None),
    "mxfp4": ("mxfp4", "mxfp4"),
    "mxfp8": ("mxfp8", "mxfp8"),
    "nvfp4": ("nvfp4", "nvfp4"),
    "fp16": ("fp16", "fp16"),
    "bf16": ("bf16", "bf16"),
}
#: How their codes are found.
_FEW_BITS = ("w4a16", "w4a16-asym", "w3a16", "w2a16", "w4a8", "mxfp4a16", "nvfp4a16", "mxfp4", "nvfp4")
ALGORITHMS: dict[str, Algorithm] = dict.fromkeys(_FEW_BITS, Gptq(guided=True))
#: The same of convolutions, whose gradients are not taken.
OF_CONVOLUTIONS: dict[str, Algorithm] = dict.fromkeys((*_FEW_BITS, "w8a8-static"), Gptq())
#: Files of GGUF types by the base of their mixture, which says what else they hold (`fewbit.mixtures`).
GGUF_PRESETS = {
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K",
    "q4_k_m": "Q4_K",
    "q4_0": "Q4_0",
    "iq4_xs": "IQ4_XS",
    "q3_k_m": "Q3_K",
    "q2_k": "Q2_K",
}
#: Tables of positions, which llama.cpp reads as floats.
_POSITIONS = r".*\.(wpe|embed_positions|position_embeddings)"


def preset(name: str) -> Recipe:
    """Return the preset called `name`.

    >>> [str(rule) for rule in preset("w4a16").rules]  # doctest: +NORMALIZE_WHITESPACE
    ["kind 'head': keep", "kind 'embedding': keep", "kind 'router': keep", "kind 'linear': int4 g128 by gptq",
     "kind 'conv': int4 g128 by gptq"]
    """
    known = [*PRESETS, *GGUF_PRESETS]
    if name in GGUF_PRESETS:
        return _gguf_preset(name)
    if name not in PRESETS:
        _refuse_scheme(name)
        raise RecipeError(unknown(name, known, what="preset"))
    rules = [
        keep(kind="head", optional=True),
        keep(kind="embedding", optional=True),
        keep(kind="router", optional=True),
    ]
    algorithm = ALGORITHMS.get(name, Nearest())
    weight, given = PRESETS[name]
    for kind, own in {"linear": algorithm, "conv": OF_CONVOLUTIONS.get(name, algorithm)}.items():
        rules.append(Rule(kind=kind, weight=weight, input=given, algorithm=own, optional=True))
    # Ranges of what a BatchNorm is given are not those of what comes out of it.
    return Recipe(rules, transforms=["batchnorm"] if given else [], name=name, adapts=True)


def _gguf_preset(name: str) -> Recipe:
    """Return the recipe of a file of GGUF types: embedding and head too, a head that is tied as its embedding."""
    base = scheme_of(GGUF_PRESETS[name])
    algorithm: Algorithm = Nearest() if name in ("q8_0", "q6_k") else Gptq(guided=True)
    rules = [keep(_POSITIONS, optional=True), keep(kind="router", optional=True)]
    rules += [Rule(kind=kind, weight=base, algorithm=Nearest(), optional=True) for kind in ("embedding", "head")]
    rules.append(Rule(kind="linear", weight=base, algorithm=algorithm, optional=True))
    return Recipe(rules, name=name, adapts=True, mixture=name)


def _refuse_scheme(name: str) -> None:
    try:
        parse_scheme(name)
    except SchemeError:
        return
    raise RecipeError(f"{name!r} is a scheme, not a preset; use --weight {name!r} or fewbit.Rule(..., weight={name!r})")


def parse_recipe(value: str | Path | Recipe) -> Recipe:
    """Return the recipe for a preset's name, the path of a TOML file, or a recipe."""
    if isinstance(value, Recipe):
        return value
    if not isinstance(value, str | Path):
        raise RecipeError(
            f"a recipe is a preset, a .toml file or a fewbit.Recipe, not a {type(value).__name__}; wrap rules "
            "as fewbit.Recipe(rules)"
        )
    if isinstance(value, Path) or value.endswith(".toml"):
        return Recipe.from_toml(value)
    return preset(value)
