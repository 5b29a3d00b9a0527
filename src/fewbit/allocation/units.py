"""Units: layers that must get the same, what they may become, and what that takes in the file.

Tied layers are one weight; layers that share their input, and the experts of a mixture, are one operator in runtimes
that fuse them; blocks may have to be alike. Bytes and problems are those of a plan for the unit alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewbit.allocation.candidates import FLOAT, Candidates
from fewbit.catalogue import unknown
from fewbit.errors import FewbitError, RecipeError
from fewbit.interfaces import Frontend, Layer, Target
from fewbit.plan_row import PlanRow
from fewbit.planning import resolve
from fewbit.recipe import Recipe
from fewbit.rule import keep
from fewbit.schemes.scheme import ScaleType

#: Which layers have to be equal: those of one input, those of one block, none; `auto`: those of one input where the
#: target's runtimes fuse them.
EQUAL = ("auto", "inputs", "blocks", "none")
#: Layouts whose runtimes make one operator of queries, keys and values, of gate and up, and of all experts.
_FUSING = ("compressed-tensors", "gptq", "awq")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a unit may become: a candidate, by the row of the plan of each of its layers."""

    name: str
    rows: tuple[PlanRow, ...]

    @property
    def bytes(self) -> int:
        """What its layers take in the file."""
        return sum(row.bytes_after for row in self.rows)


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers that get the same."""

    layers: tuple[Layer, ...]
    choices: tuple[Choice, ...]
    #: Why it cannot have a candidate, by name.
    refused: Mapping[str, str] = field(default_factory=dict)
    #: Candidates that come to the very same schemes as a choice, as fallbacks of GGUF types may, by name.
    same: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its first layer."""
        return self.layers[0].name

    def choice(self, name: str) -> Choice | None:
        """Return the choice that the candidate `name` comes to, or `None`."""
        wanted = self.same.get(name, name)
        return next((own for own in self.choices if own.name == wanted), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the units of a model depend on."""

    candidates: Candidates
    target: Target | None
    storage_type: ScaleType
    #: Regular expressions of layers that stay float.
    keep: tuple[str, ...] = ()
    equal: str = "auto"

    def __post_init__(self) -> None:
        if self.equal not in EQUAL:
            raise RecipeError(unknown(str(self.equal), EQUAL, what="choice of layers that are equal"))

    @property
    def fuses(self) -> bool:
        """Whether layers of one input have to be equal."""
        own = self.equal == "auto" and self.target is not None and self.target.name in _FUSING
        return own or self.equal == "inputs"

    def kept(self, layer: Layer) -> bool:
        """Whether a layer stays float whatever the budget is."""
        rules = [keep(pattern) for pattern in self.keep]
        return layer.kind in ("router", "attention") or any(rule.matches(layer) for rule in rules)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the report says of them."""
        said = ["tied layers are equal"]
        said += ["layers that share their input are equal, and the experts of a mixture"] if self.fuses else []
        said += ["all layers of a block are equal"] if self.equal == "blocks" else []
        said += [f"kept float: {pattern}" for pattern in self.keep]
        return tuple(said)


def units_of(frontend: Frontend, model: Any, layers: Sequence[Layer], setting: Setting, batch: Any) -> list[Unit]:
    """Return the units of the layers that may be quantized, in the order of the model.

    Raises:
        RecipeError: an expression in `keep` that matches no layer, or every layer is kept.

    """
    for pattern in setting.keep:
        if not any(keep(pattern).matches(layer) for layer in layers):
            raise RecipeError(f"keep {pattern!r:.80} matches no layer; `fewbit inspect` lists them")
    free = [layer for layer in layers if not setting.kept(layer)]
    if not free:
        raise RecipeError("every layer is kept; there are no bits to allocate")
    groups = _grouped(free, _together(frontend, model, free, setting, batch))
    return [_unit(frontend, model, own, setting) for own in groups]


def _together(
    frontend: Frontend, model: Any, layers: Sequence[Layer], setting: Setting, batch: Any
) -> list[Iterable[str]]:
    """Return the names of layers that have to be equal, pairs or more together."""
    found: list[Iterable[str]] = [(layer.name, *layer.tied) for layer in layers if layer.tied]
    if setting.fuses:
        found += frontend.shared_inputs(model, [own for own in layers if own.kind == "linear"], batch) or []
        found += _by_place((own.name for own in layers if own.expert), r"(.*)\.\d+\.")
    if setting.equal == "blocks":
        found += _by_place((own.name for own in layers), r"(.*?\.\d+)\.")
    return found


def _by_place(names: Iterable[str], place: str) -> Iterable[list[str]]:
    """Return the `names` together whose match of `place` is the same."""
    found: dict[str, list[str]] = {}
    for name in names:
        if own := re.match(place, name):
            found.setdefault(own[1], []).append(name)
    return found.values()


def _grouped(layers: Sequence[Layer], together: Iterable[Iterable[str]]) -> list[list[Layer]]:
    leader = {layer.name: layer.name for layer in layers}
    for names in together:
        known = [name for name in names if name in leader]
        first = leader[known[0]] if known else ""
        joined = {leader[name] for name in known}
        leader = {name: first if own in joined else own for name, own in leader.items()}
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(leader[layer.name], []).append(layer)
    return list(groups.values())


def _unit(frontend: Frontend, model: Any, layers: Sequence[Layer], setting: Setting) -> Unit:
    """Return a unit with the choices that it can have; float is one where it has no other, or was asked for."""
    choices, refused = [], {}
    for name in setting.candidates.names:
        try:
            rows, problems = _planned(frontend, model, layers, setting, name)
        except FewbitError as error:
            rows, problems = (), [str(error)]
        if problems:
            refused[name] = problems[0]
        else:
            choices.append(Choice(name, rows))
    if not choices:
        choices.append(Choice(FLOAT, _planned(frontend, model, layers, setting, FLOAT)[0]))
    found: dict[tuple[str, ...], Choice] = {}
    first = {own.name: found.setdefault(tuple(row.becomes for row in own.rows), own).name for own in choices}
    same = {name: other for name, other in first.items() if other != name}
    return Unit(tuple(layers), tuple(found.values()), refused, same)


def _planned(
    frontend: Frontend, model: Any, layers: Sequence[Layer], setting: Setting, name: str
) -> tuple[tuple[PlanRow, ...], Sequence[str]]:
    exact = [re.escape(layer.name) for layer in layers]
    if name == FLOAT:
        # A recipe has to quantize something, which here is no layer of the unit.
        rules = [keep(own) for own in exact]
        rules.append(setting.candidates.rule(_first_scheme(setting.candidates), layers[0], "nothing"))
    else:
        pairs = zip(exact, layers, strict=True)
        rules = [setting.candidates.rule(name, layer, own) for own, layer in pairs]
    made = resolve(
        "", layers, [], Recipe(rules), storage_type=setting.storage_type, target=setting.target,
        differentiable=frontend.trains,
    )  # fmt: skip
    if name == FLOAT:
        return made.rows, ()
    wanted = [
        (own, row.algorithm.statistics if row.algorithm else ())
        for own, row in zip(made.quantized, made.rows, strict=True)
    ]
    return made.rows, (*made.problems, *frontend.problems(model, wanted))


def _first_scheme(candidates: Candidates) -> str:
    return next(name for name in candidates.names if name != FLOAT)
