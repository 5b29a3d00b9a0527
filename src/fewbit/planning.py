"""The plan: a recipe resolved against a model and a target before any work, with every problem found at once.

Each layer becomes a row with its scheme and its bytes before and after; nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from fewbit.drafts import Draft, draft_of, sharing
from fewbit.errors import PlanError
from fewbit.fitting import fitted, for_floats_beside, without_floats_beside
from fewbit.footprint import levels_noted, quantized_tensors
from fewbit.formats.cast import Cast
from fewbit.interfaces import (
    BYTES,
    FLOAT_TYPES,
    Layer,
    Manifest,
    QuantizedLayer,
    StoredTensor,
    Target,
)
from fewbit.mixtures import mix
from fewbit.plan_row import PlanRow
from fewbit.problems import idle_rules, nothing_quantized, several, uncorrected
from fewbit.recipe import Recipe
from fewbit.schemes.scheme import ScaleType

#: The note of a layer that no longer shares its weight.
UNTIED = "untied: stored on its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe resolved against a model; `str(plan)` is a table."""

    #: What the user calls the model.
    model: str
    recipe: Recipe
    #: The checkpoint format it was checked against, or `None`.
    target: str | None
    #: Type of float numbers and scales in files.
    storage_type: ScaleType
    rows: tuple[PlanRow, ...]
    #: Stored tensors that are no layer's weight: norms, float biases, buffers.
    rest: tuple[StoredTensor, ...]
    #: What was changed to make the recipe fit, of explicit rules only casts that overflow; what no rule can reach.
    adaptations: tuple[str, ...] = ()
    #: What would run faster on the machine at hand, under another scheme.
    hints: tuple[str, ...] = ()
    #: What keeps the recipe from being carried out.
    problems: tuple[str, ...] = ()
    #: The importance matrix in the place of calibration data; `None`: there is none.
    importance: str | None = None
    #: Calibration batches whose statistics are summed apart and then merged in order; `None`: all of them at once.
    part: int | None = None

    @property
    def rest_bytes(self) -> int:
        """Bytes of everything that is in no row."""
        return sum(tensor.nbytes for tensor in self.rest)

    @property
    def bytes_before(self) -> int:
        """Bytes of the whole model stored as `storage_type`."""
        return self.rest_bytes + sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of the tensors of the checkpoint, without its headers and its tokenizer."""
        return self.rest_bytes + sum(row.bytes_after for row in self.rows)

    @property
    def quantized(self) -> tuple[QuantizedLayer, ...]:
        """The layers that get codes."""
        return tuple(
            QuantizedLayer(row.layer, row.scheme, row.input, row.output, row.bias) for row in self.rows if row.scheme
        )

    @property
    def weight_names(self) -> frozenset[str]:
        """Names of the tensors that codes stand for."""
        return frozenset(f"{row.layer.name}.weight" for row in self.rows if row.scheme)

    @property
    def float_names(self) -> frozenset[str]:
        """Names of the tensors that stay float, with experts apart."""
        return frozenset((*(f"{row.layer.name}.weight" for row in self._float_rows), *(own.name for own in self.rest)))

    @property
    def _float_rows(self) -> list[PlanRow]:
        """The layers that keep float weights which are stored."""
        return [row for row in self.rows if not row.scheme and row.layer.kind != "attention" and row.bytes_after]

    def _float_weights(self) -> dict[str, StoredTensor]:
        """Return the weights that stay float by name; experts of a parameter with none rounded are one."""
        apart = {row.layer.part_of for row in self.rows if row.scheme}
        found = {}
        for layer in (row.layer for row in self._float_rows):
            whole = None if layer.part_of in apart else layer.part_of
            name, shape = whole or (f"{layer.name}.weight", layer.stored or layer.shape)
            found[name] = StoredTensor(name, self.storage_type, shape)
        return found

    @property
    def rounded_products(self) -> tuple[PlanRow, ...]:
        """The products inside attention whose operands are rounded."""
        return tuple(row for row in self.rows if row.input and row.layer.kind == "attention")

    @property
    def cast_types(self) -> set[str]:
        """The types of the weights that are cast."""
        return {row.scheme.format.dtype for row in self.rows if row.scheme and isinstance(row.scheme.format, Cast)}

    @property
    def cast_whole(self) -> Cast | None:
        """The type that a preset casts the whole model to, where layers that stay float are exceptions; else `None`."""
        found = {row.scheme.format for row in self.rows if row.scheme}
        cast = next(iter(found), None)
        return cast if self.recipe.adapts and len(found) == 1 and isinstance(cast, Cast) else None

    @property
    def runtime_type(self) -> ScaleType:
        """The type that loads every number of a file as it is, and overflows nowhere; `storage_type` where it does."""
        mixed = self.cast_types - {self.storage_type} or any(row.overflow for row in self.rows)
        return "float32" if mixed else self.storage_type

    @property
    def unties(self) -> bool:
        """Whether a weight that layers shared is stored more than once, or no longer shared, afterwards."""
        return any(row.scheme and row.layer.tied and not self._alike(row) for row in self.rows)

    def _alike(self, row: PlanRow) -> bool:
        """Whether all layers that share a weight are quantized to the very same codes."""
        sharing = [own for own in self.rows if own.layer.name in (row.layer.name, *row.layer.tied)]
        return sum(own.shared is not None for own in sharing) == len(sharing) - 1

    def require_sound(self) -> None:
        """Raise `PlanError` with every problem, if there is one."""
        if self.problems:
            raise PlanError("\n".join(self.problems))

    def manifest(self, configuration: Mapping[str, Any], files: Mapping[str, bytes]) -> Manifest:
        """Return what a checkpoint of this plan will hold."""
        configuration = dict(configuration)
        if configuration:
            configuration["dtype"] = self.runtime_type
            if self.unties and configuration.get("tie_word_embeddings"):
                configuration["tie_word_embeddings"] = False
        kept = [row for row in self.rows if not row.scheme and row.layer.kind != "attention"]
        return Manifest(
            quantized=self.quantized,
            kept=tuple(row.layer for row in kept),
            floats=(*self._float_weights().values(), *self.rest),
            storage_type=self.storage_type,
            configuration=configuration,
            files=files,
            shared={row.layer.name: row.shared for row in self.rows if row.shared and row.scheme},
        )

    def __str__(self) -> str:
        width = max([len(row.layer.name) for row in self.rows] + [len("everything else")])
        wide = max([len(row.becomes) for row in self.rows] + [18])
        lines = [f"{'layer':{width}}  {'shape':>14}  {'becomes':<{wide}} {'before':>11}  {'after':>11}  notes"]
        for row in self.rows:
            shape = "x".join(str(size) for size in row.layer.shape if row.layer.kind != "attention")
            lines.append(
                f"{row.layer.name:{width}}  {shape:>14}  {row.becomes:<{wide}} {row.bytes_before:>11,}  "
                f"{row.bytes_after:>11,}  {'; '.join(row.notes)}".rstrip()
            )
        rest = self.rest_bytes
        lines.append(f"{'everything else':{width}}  {'':>14}  {'float':<{wide}} {rest:>11,}  {rest:>11,}")
        ratio = self.bytes_before / max(self.bytes_after, 1)
        lines.append(
            f"{'whole model':{width}}  {'':>14}  {'':<{wide}} {self.bytes_before:>11,}  {self.bytes_after:>11,}  "
            f"bytes as {self.storage_type}, {ratio:.2f} times smaller"
        )
        lines += [f"adapted: {text}" for text in self.adaptations]
        lines += [f"hint: {text}" for text in self.hints]
        lines += [f"problem: {text}" for text in self.problems]
        return "\n".join(lines)


def resolve(
    model: str,
    layers: Sequence[Layer],
    floats: Sequence[StoredTensor],
    recipe: Recipe,
    *,
    storage_type: ScaleType,
    target: Target | None = None,
    differentiable: bool = True,
) -> Plan:
    """Return the plan of `recipe` for a model with these layers and stored float tensors.

    Problems are collected in the plan, not raised; `Plan.require_sound` raises them all.
    """
    drafts = [draft_of(layer, recipe) for layer in layers]
    problems = idle_rules(recipe, layers)
    if not any(draft.scheme or draft.product for draft in drafts):
        problems.append(nothing_quantized(layers))
    adaptations = mix(drafts, recipe.mixture) if recipe.mixture else []
    adaptations += fitted(drafts, target, storage_type, differentiable=differentiable) if recipe.adapts else []
    adaptations += for_floats_beside(drafts) if differentiable else without_floats_beside(drafts)
    scale_type = target.scale_type(storage_type) if target else _sixteen_bit(storage_type)
    alike: dict[str, list[str]] = {}
    for draft in drafts:
        if draft.scheme is not None:
            draft.scheme = draft.scheme.stored_as(scale_type)
        for text in draft.problems(storage_type, target):
            alike.setdefault(text, []).append(draft.layer.name)
    problems += [f"{several(names)}: {text}" for text, names in alike.items()]
    problems += uncorrected(recipe, [draft.layer for draft in drafts if draft.corrections])
    rows = _rows(drafts, storage_type, target)
    own = {f"{layer.name}.weight" for layer in layers}
    own |= {f"{row.layer.name}.bias" for row in rows if row.bias != "float"}
    return Plan(
        model=model,
        recipe=recipe,
        target=target.name if target else None,
        storage_type=storage_type,
        rows=rows,
        rest=tuple(_stored(tensor, storage_type) for tensor in floats if tensor.name not in own),
        adaptations=tuple(adaptations),
        problems=tuple(problems),
    )


def _rows(drafts: list[Draft], storage_type: ScaleType, target: Target | None) -> tuple[PlanRow, ...]:
    counted_before: set[str] = set()
    counted_after: set[str] = set()
    rows = []
    for place, draft in enumerate(drafts):
        layer, scheme = draft.layer, draft.scheme
        twin, shares = sharing(drafts, place) if target and target.shares_weights else (None, False)
        whole = prod(layer.shape) * BYTES[storage_type]
        before = 0 if counted_before & set(layer.tied) else whole
        counted_before.add(layer.name)
        notes = list(draft.notes)
        quantized = draft.quantized(storage_type) if scheme else None
        if layer.tied:
            notes.append(f"tied to {', '.join(layer.tied)}")
        if quantized is not None:
            before += layer.shape[0] * BYTES[storage_type] if quantized.bias != "float" else 0
            stored = () if twin else quantized_tensors(quantized, storage_type, target)
            after = sum(tensor.nbytes for tensor in stored)
            notes += [UNTIED] if layer.tied and not shares else []
            notes += levels_noted(quantized)
        else:
            after = 0 if counted_after & set(layer.tied) else whole
            counted_after.add(layer.name)
        rows.append(
            PlanRow(
                layer=layer,
                scheme=scheme,
                input=quantized.input if quantized else draft.product,
                output=quantized.output if quantized else None,
                bias=quantized.bias if quantized else "float",
                corrections=draft.corrections,
                algorithm=draft.rule.algorithm if draft.rule and scheme else None,
                bytes_before=before,
                bytes_after=after,
                asked=draft.rule.weight if draft.rule else None,
                shared=twin,
                notes=tuple(notes),
            )
        )
    return tuple(rows)


def _stored(tensor: StoredTensor, storage_type: ScaleType) -> StoredTensor:
    return replace(tensor, dtype=storage_type) if tensor.dtype in FLOAT_TYPES else tensor


def _sixteen_bit(storage_type: ScaleType) -> ScaleType:
    return "float16" if storage_type == "float32" else storage_type
