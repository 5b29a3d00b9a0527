"""Rotate the residual stream of a model: found by links and widths, kept if the model's output stays the same.

Readers are what a norm alone feeds, writers the embeddings and other layers as wide as the stream. An RMSNorm without
gain commutes with every Q, a LayerNorm with one that keeps the mean; which one it is shows when it is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.frontends.torch.calls import Call, copied, run_batch, same
from fewbit.frontends.torch.channel_scaling import Changes, Form, exchange, parameter_like, stored_weight
from fewbit.frontends.torch.head_rotation import HeadRotation
from fewbit.frontends.torch.layers import canonical_weight, find_layers
from fewbit.frontends.torch.link_parts import outside_blocks, runnable_parts
from fewbit.frontends.torch.links import Fold, LinkSearch
from fewbit.frontends.torch.output_change import CLEARLY, output_change
from fewbit.frontends.torch.short_call import shortened
from fewbit.interfaces import Layer
from fewbit.transforms import Applied
from fewbit.transforms.rotation import heads_sentence, stream_sentence

#: Roundings by which outputs may differ: those of every rotated weight go through the whole model.
_ROUNDINGS = 2.0**14

#: Orthogonal float64 matrix of a width, one that keeps the mean if asked.
MatrixOf = Callable[..., np.ndarray[Any, np.dtype[np.float64]]]


def rotate(model: nn.Module, batch: Any, matrix: MatrixOf, *, heads: bool) -> Applied:
    """Rotate the residual stream, and values inside heads if asked; say what was rotated and what could not be."""
    call = Call.made_up(model) if batch is None else Call.of(batch)
    if call is None:
        return Applied(sentences=("rotation: no data shows what reads the residual stream; give some",))
    given = shortened(model, call).batch()
    rotated = HeadRotation(model, matrix)
    shared = _untied(model, find_layers(model))
    before: Changes = []
    layers = find_layers(model)
    norms: list[Fold] = []
    known: dict[Any, Any] = {}
    for part, own, runs in runnable_parts(model, layers, given):
        outside = None if part else set(outside_blocks(model, layers))
        folds = LinkSearch(model, part, own, runs, among=outside, known=known).folds()
        norms += [fold for fold in folds if fold.form is not Form.ROWS]
        if heads and part:
            before = [*rotated.rotate([fold for fold in folds if fold.form is Form.ROWS], runs[0]), *before]
    stream = _Stream(model, layers, norms)
    sentence, changes = stream.rotated(partial(run_batch, model, given, every_score=True), matrix)
    before = [*changes, *before]
    if not changes:  # the head has no reason to be on its own
        exchange(shared)
        shared = []
    config = getattr(model, "config", None)
    tied = bool(changes) and getattr(config, "tie_word_embeddings", False)
    if tied:
        config.tie_word_embeddings = False  # type: ignore[union-attr]

    def restore() -> None:
        exchange([*before, *shared])
        if tied:
            config.tie_word_embeddings = True  # type: ignore[union-attr]

    return Applied(sentences=(sentence, *([heads_sentence(rotated.count)] if rotated.count else [])), restore=restore)


def _untied(model: nn.Module, layers: Sequence[Layer]) -> Changes:
    """Give a head that shares the weight of an embedding one of its own; return what it had."""
    owners = Counter(id(own) for module in model.modules() for own in module._parameters.values())
    heads: list[Any] = [model.get_submodule(layer.name) for layer in layers if layer.kind == "head"]
    heads = [head for head in heads if owners[id(head.weight)] > 1]
    return exchange([(head, {"weight": parameter_like(head.weight, head.weight.detach())}) for head in heads])


@dataclass(slots=True)
class _Stream:
    """The residual stream of a model: norms that read it, with the layers behind them, and what writes it."""

    model: nn.Module
    layers: Sequence[Layer]
    norms: Sequence[Fold]

    def rotated(self, run: Callable[[], Any], matrix: MatrixOf) -> tuple[str, Changes]:
        """Rotate if it can be done; return what to say, and what the modules had."""
        widths = Counter(fold.link.outputs for fold in self.norms)
        if not widths:
            return "rotation: no norm feeds linear layers alone, so the residual stream is as it was", []
        width = widths.most_common(1)[0][0]
        norms = [fold for fold in self.norms if fold.link.outputs == width]
        readers = {name for fold in norms for name in fold.link.consumers}
        layers = {layer.name: layer.shape[1 if layer.kind == "embedding" else 0] for layer in self.layers}
        # A subclass of an embedding is no layer, but may write the stream: positions of OPT.
        layers |= {
            name: module.embedding_dim
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding)
        }
        writers = [name for name, size in layers.items() if size == width and name not in readers]
        expected = copied(run())
        for keep_mean in (False, True):
            turn = torch.from_numpy(matrix(width, keep_mean=keep_mean))
            before = self._turn(norms[:1], (), turn)
            wrong = output_change(expected, run())  # one that reads alone
            exchange(before)
            before = self._turn(norms, writers, turn)
            found = run()
            if same(expected, found, _ROUNDINGS) and CLEARLY * output_change(expected, found) < wrong:
                return stream_sentence(width, len(norms), len(writers), keep_mean=keep_mean), before
            exchange(before)
        why = "not everything that reads and writes it was found"
        return f"rotation: the residual stream of {width} channels is as it was: {why}", []

    @torch.no_grad()
    def _turn(self, norms: Sequence[Fold], writers: Collection[str], matrix: Tensor) -> Changes:
        """Turn every reader and writer; return what they had."""
        changed: Changes = []
        for fold in norms:
            norm: Any = self.model.get_submodule(fold.link.producer)
            turn = matrix.to(norm.weight.device)
            beside = 1.0 if fold.form is Form.GAIN_BESIDE_ONE else 0.0
            gain = norm.weight.double() + beside
            own = {"weight": parameter_like(norm.weight, torch.ones_like(gain) - beside)}
            if getattr(norm, "bias", None) is not None:
                # gain * x + shift = gain * (x + shift / gain); without a gain a channel has no place for its shift.
                own["bias"] = parameter_like(norm.bias, (norm.bias.double() / gain) @ turn)
            changed.append((norm, own))
            for name in fold.link.consumers:
                reader = self.model.get_submodule(name)
                weight = (canonical_weight(reader).double() * gain) @ turn
                changed.append((reader, {"weight": stored_weight(reader, weight)}))
        for name in writers:
            writer: Any = self.model.get_submodule(name)
            weight, turn = canonical_weight(writer).double(), matrix.to(writer.weight.device)
            embeds = isinstance(writer, nn.Embedding)
            made = {"weight": stored_weight(writer, weight @ turn if embeds else turn.T @ weight)}
            if getattr(writer, "bias", None) is not None:
                made["bias"] = parameter_like(writer.bias, writer.bias.double() @ turn)
            changed.append((writer, made))
        return exchange(changed)
