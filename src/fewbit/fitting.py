"""Fit a preset to the target, the machine, the kind of model and the widths of its layers, and say what was changed.

An explicit recipe is taken at its word instead, and what cannot be had is a problem of the plan.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from math import prod

from fewbit.adaptation import adapt
from fewbit.algorithms import unpaired
from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.nearest import Nearest
from fewbit.drafts import Draft
from fewbit.interfaces import Layer, QuantizedLayer, Target
from fewbit.problems import several
from fewbit.rule import Rule
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import ScaleType, Scheme

#: Bits of inputs whose rounding moves what follows farther than that of the weights.
_COARSE = 4


def fitted(drafts: list[Draft], target: Target | None, storage_type: ScaleType, *, differentiable: bool) -> list[str]:
    """Fit the drafts of a preset; return what to say of it."""
    changed = _without_odd_blocks(drafts)
    changed += _fitted_to(drafts, target, storage_type)
    if target is not None and target.holds_graph:
        changed += _cast_too(drafts)
    if not _has_torch():
        changed += _without_torch(drafts)
    if not differentiable:
        changed += _without_gradients(drafts)
    return [*changed, *_without_convolutions(drafts, target, storage_type), *_adapted(drafts)]


def _has_torch() -> bool:
    try:
        return find_spec("torch") is not None
    except ModuleNotFoundError:
        return False


def _without_convolutions(drafts: list[Draft], target: Target | None, storage_type: ScaleType) -> list[str]:
    """Keep the convolutions that `target` has no layout for, such as the patches of a ViT; return what to say of it."""
    kept: dict[str, list[str]] = {}
    for draft in drafts:
        convolution = draft.scheme and draft.layer.kind == "conv"
        if target and convolution and target.problem(draft.quantized(storage_type)):
            draft.scheme = None
            draft.notes.append(f"kept: {target.name} holds no {draft.layer.module_class}")
            kept.setdefault(draft.layer.module_class, []).append(draft.layer.name)
    return [f"{several(names)}: kept float, {target.name} holds no {kind}" for kind, names in kept.items() if target]


def _without_odd_blocks(drafts: list[Draft]) -> list[str]:
    """Keep what a format of blocks has no form for, since no runtime reads other blocks; return what to say of it."""
    alike: dict[str, list[str]] = {}
    for draft in drafts:
        given = draft.rule.input if draft.rule else None
        if draft.scheme is None or (why := _odd_blocks(draft.layer, draft.scheme, given)) is None:
            continue
        draft.scheme = None
        draft.notes.append(f"kept: {why}")
        alike.setdefault(why, []).append(draft.layer.name)
    return [f"{several(names)}: kept float, {why}" for why, names in alike.items()]


def _odd_blocks(layer: Layer, scheme: Scheme, given: Scheme | None) -> str | None:
    """Return why a layer cannot have a scheme whose groups are part of a format, or `None`."""
    if scheme.scale_scheme is None or not isinstance(scheme.granularity, PerGroup):
        return None
    if layer.kind == "conv" and given is not None:
        return f"the inputs of a convolution have no blocks of {scheme}"
    size, width = scheme.granularity.size, prod(layer.shape[1:])
    return f"its width {width} is not a multiple of {size}, a block of {scheme}" if width % size else None


def _fitted_to(drafts: list[Draft], target: Target | None, storage_type: ScaleType) -> list[str]:
    """Give layers the nearest schemes that `target` has a form for; return what to say of it."""
    alike: dict[str, list[str]] = {}
    for draft in drafts:
        if target is None or draft.scheme is None:
            continue
        asked = draft.quantized(storage_type)
        fitted = target.fitted(asked)
        for name in ("input", "output"):
            before, after = getattr(asked, name), getattr(fitted, name)
            if before != after:
                was, now = (input_scheme_to_text(own) if own else "float" for own in (before, after))
                alike.setdefault(f"{name} '{was}' -> '{now}', the nearest that {target.name} has", []).append(
                    draft.layer.name
                )
        if fitted.scheme != asked.scheme:
            text = f"weight '{asked.scheme}' -> '{fitted.scheme}', which loses less in files for {target.name}"
            alike.setdefault(text, []).append(draft.layer.name)
        draft.scheme, draft.fitted = fitted.scheme, fitted
    return [f"{several(names)}: {text}" for text, names in alike.items()]


def _cast_too(drafts: list[Draft]) -> list[str]:
    """Cast what a preset of casts keeps, since the graph around it is cast too; return what to say of it."""
    schemes = {draft.scheme for draft in drafts if draft.scheme}
    scheme = next(iter(schemes), None)
    if len(schemes) != 1 or scheme is None or scheme.scaled:
        return []
    names = []
    for draft in drafts:
        rule = draft.rule
        if rule is not None and rule.keep and rule.optional:
            given = scheme if draft.layer.kind != "embedding" else None
            draft.rule = Rule(kind=draft.layer.kind, weight=scheme, input=given, algorithm=Nearest(), optional=True)
            draft.scheme, draft.notes = scheme, []
            names.append(draft.layer.name)
    return [f"{several(names)}: {scheme} too, as the whole graph is"] if names else []


def _without_torch(drafts: list[Draft]) -> list[str]:
    """Round 8-bit weights to nearest where GPTQ cannot run, as it needs torch; return what to say of it."""
    names = []
    for draft in drafts:
        rule, scheme = draft.rule, draft.scheme
        if rule is not None and scheme is not None and isinstance(rule.algorithm, Gptq) and scheme.format.bits >= 8:
            draft.rule = replace(rule, algorithm=Nearest())
            names.append(draft.layer.name)
    return [f"{several(names)}: rounded to nearest; pip install 'fewbit[torch]' for gptq"] if names else []


def _without_gradients(drafts: list[Draft]) -> list[str]:
    """Let GPTQ do without the gradients of a model that has none; return what to say of it."""
    names = []
    for draft in drafts:
        rule = draft.rule
        if rule is not None and draft.scheme is not None and isinstance(rule.algorithm, Gptq) and rule.algorithm.guided:
            draft.rule = replace(rule, algorithm=replace(rule.algorithm, guided=False))
            names.append(draft.layer.name)
    return [f"{several(names)}: gptq without gradients, which only PyTorch modules have"] if names else []


def for_floats_beside(drafts: list[Draft]) -> list[str]:
    """Let GPTQ round for the output of the float model where coarse inputs move what follows; return what to say."""
    names = []
    for draft in drafts:
        rule = draft.rule
        if rule is None or draft.scheme is None or not isinstance(rule.algorithm, Gptq) or rule.algorithm.guided:
            continue
        coarse = rule.input is not None and rule.input.scaled and rule.input.format.bits <= _COARSE
        if coarse and draft.layer.multiplies_rows and rule.algorithm.asymmetric is None:
            draft.rule = replace(rule, algorithm=replace(rule.algorithm, asymmetric=True))
            names.append(draft.layer.name)
    why = f"as inputs are rounded to {_COARSE} bits or fewer"
    return [f"{several(names)}: gptq for the output of the float model, {why}"] if names else []


def without_floats_beside(drafts: list[Draft]) -> list[str]:
    """Let algorithms do without a float model beside the quantized one; return what to say of it."""
    alike: dict[str, list[str]] = {}
    for draft in drafts:
        rule = draft.rule
        if rule is not None and draft.scheme is not None and unpaired(rule.algorithm) != rule.algorithm:
            draft.rule = replace(rule, algorithm=unpaired(rule.algorithm))
            alike.setdefault(rule.algorithm.name, []).append(draft.layer.name)
    return [
        f"{several(names)}: {name} for the inputs at hand alone, since no float model runs beside the quantized one"
        for name, names in alike.items()
    ]


def _adapted(drafts: list[Draft]) -> list[str]:
    """Let the sizes of groups fit the widths of the layers; return what to say of it."""
    changing = [draft for draft in drafts if draft.scheme]
    schemes, sentences = adapt([QuantizedLayer(draft.layer, draft.scheme) for draft in changing if draft.scheme])
    for draft, scheme in zip(changing, schemes, strict=True):
        draft.scheme = scheme
    return sentences
