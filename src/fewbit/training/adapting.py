"""Adapters put beside quantized layers, read and written; what was done hangs at the model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit.checkpoints.adapter_folder import AdapterFolder, read_adapters, write_adapters
from fewbit.errors import CheckpointError, NonFiniteError, PlanError, RecipeError
from fewbit.evaluation.token_ids import writes_text
from fewbit.frontends.torch.low_rank import ADAPTER, LowRank, adapted_layers
from fewbit.frontends.torch.quantized import QuantizedLinear
from fewbit.interfaces import Source
from fewbit.planning import Plan
from fewbit.problems import several
from fewbit.result import Result
from fewbit.training.adapters import Adapters
from fewbit.training.finite import require_finite_output
from fewbit.training.prepared import taken_from

#: What hangs at the model.
ADAPTED = "fewbit_adapted"


@dataclass(slots=True)
class Adapted:
    """What `prepare_adapters` did to a model."""

    model: nn.Module
    #: Of the model without adapters.
    plan: Plan
    source: Source
    options: Adapters
    #: What asked for gradients before.
    trained: list[nn.Parameter] = field(default_factory=list)

    def install(self, layers: dict[str, QuantizedLinear]) -> None:
        """Put the adapters in, A and B as they are made."""
        self.trained = [own for own in self.model.parameters() if own.requires_grad]
        for own in self.trained:
            own.requires_grad_(False)
        options = self.options
        generator = torch.Generator().manual_seed(options.seed)
        for layer in layers.values():
            shape = layer.out_features, layer.in_features
            adapter = LowRank(shape, options.rank, options.share, options.dropout)
            adapter.begin(generator)
            layer.spare(sparing=True)
            layer.add_module(ADAPTER, adapter.to(layer.device).train(layer.training))
            layer.register_forward_hook(adapter.on_output, with_kwargs=True)
        # No submodule: a model may be a list of layers that runs them all.
        self.model.__dict__[ADAPTED] = self
        self.model.register_forward_hook(require_finite_output, with_kwargs=True)

    def remove(self) -> None:
        """Take the adapters out; the model asks for gradients where it did before."""
        for _, layer, adapter in list(adapted_layers(self.model)):
            for key in taken_from(layer._forward_hooks, partial(eq, adapter.on_output)):
                layer._forward_hooks_with_kwargs.pop(key, None)
            del layer._modules[ADAPTER]
            layer.spare(sparing=False)
        for key in taken_from(self.model._forward_hooks, lambda hook: hook is require_finite_output):
            self.model._forward_hooks_with_kwargs.pop(key, None)
        for own in self.trained:
            own.requires_grad_(True)
        del self.model.__dict__[ADAPTED]


def prepare(result: Any, options: Adapters) -> nn.Module:
    """Do what `fewbit.prepare_adapters` says."""
    if not isinstance(result, Result) or not isinstance(result.model, nn.Module):
        raise RecipeError(
            f"adapters hang beside the layers of a quantized torch model, not of a {type(result).__name__}; "
            "give what fewbit.quantize or fewbit.load returns"
        )
    model = result.model
    if ADAPTED in model.__dict__:
        raise PlanError(f"{type(model).__name__} has adapters already; fewbit.merge_adapters takes them out")
    layers = _layers(result, options)
    rounded = [name for name, own in layers.items() if own.output is not None]
    if rounded:
        raise PlanError(f"{several(rounded)}: the output is rounded, and an adapter is added to it; leave out output")
    Adapted(model, result.plan, result.source, options).install(layers)
    return model


def _layers(result: Result, options: Adapters) -> dict[str, QuantizedLinear]:
    """Return what gets an adapter; raises `PlanError` where there is nothing, or a weight that is not its own."""
    rows = {row.layer.name: row.layer for row in result.plan.rows}
    known = {name: own for name, own in result.model.named_modules() if isinstance(own, QuantizedLinear)}
    if options.match is None:
        layers = {name: own for name, own in known.items() if name not in rows or rows[name].kind != "head"}
    else:
        layers = {name: own for name, own in known.items() if re.fullmatch(options.match, name)}
    if not layers:
        there = f"there are: {several(list(known))}" if known else "there is none; quantize some"
        wanted = "but heads there are none" if options.match is None else f"none matches {options.match!r:.120}"
        raise PlanError(f"of the quantized linear layers {wanted}; {there}")
    tied = [name for name in layers if name in rows and rows[name].tied]
    if tied:
        raise PlanError(
            f"{several(tied)}: an adapter would part it from the layer that has the same weight; leave it out"
        )
    return layers


def adapted(model: Any) -> Adapted:
    """Return what was done to `model`.

    Raises:
        PlanError: nothing was.

    """
    found = getattr(model, "__dict__", {}).get(ADAPTED)
    if not isinstance(found, Adapted):
        raise PlanError(f"{type(model).__name__} has no adapters; call fewbit.prepare_adapters first")
    return found


def require_finite(model: nn.Module) -> None:
    """Raise `NonFiniteError` for an adapter that holds NaN or infinity."""
    for name, _, adapter in adapted_layers(model):
        if not all(bool(torch.isfinite(own).all()) for own in adapter.parameters()):
            raise NonFiniteError(f"{name}: its adapter has become NaN or infinite; go on from an earlier state")


def save(model: Any, path: Path, *, overwrite: bool) -> Path:
    """Do what `fewbit.save_adapters` says."""
    work = adapted(model)
    require_finite(model)
    pairs = {
        name: (own.down.detach().cpu().numpy(), own.up.detach().cpu().numpy()) for name, _, own in adapted_layers(model)
    }
    options = work.options
    folder = AdapterFolder(
        rank=options.rank, alpha=options.alpha, dropout=options.dropout, pairs=pairs, share=options.share
    )
    said = {
        "base_model_name_or_path": work.source.name,
        "task_type": "CAUSAL_LM" if writes_text(model) else None,
    }
    names = [name for name, _ in model.named_modules()]
    return write_adapters(path, folder, said, names, overwrite=overwrite)


def load(result: Any, path: Path) -> nn.Module:
    """Do what `fewbit.load_adapters` says."""
    found = read_adapters(path)
    match = "|".join(re.escape(name) for name in found.pairs)
    alpha = found.share * found.rank  # of rank-stabilized adapters another than the folder says
    model = prepare(result, Adapters(rank=found.rank, alpha=alpha, dropout=found.dropout, match=match))
    try:
        _take(model, found, path)
    except CheckpointError:
        adapted(model).remove()
        raise
    return model


@torch.no_grad()
def _take(model: nn.Module, found: AdapterFolder, path: Path) -> None:
    layers = {name: (layer, adapter) for name, layer, adapter in adapted_layers(model)}
    if missing := [name for name in found.pairs if name not in layers]:
        raise CheckpointError(f"{path} has adapters of {several(missing)}, which are no quantized linear layers here")
    for name, pair in found.pairs.items():
        layer, adapter = layers[name]
        if (pair[1].shape[0], pair[0].shape[1]) != layer.shape:
            raise CheckpointError(
                f"{path}: the adapter of {name} is for {pair[1].shape[0]} x {pair[0].shape[1]}, the layer has "
                f"{layer.shape[0]} x {layer.shape[1]}"
            )
        for own, array in zip((adapter.down, adapter.up), pair, strict=True):
            own.copy_(torch.from_numpy(array.astype("float32")))
