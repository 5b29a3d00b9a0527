"""Which parts of a model have their numbers: one block, or one module outside of all, at a time, read when it is run.

A part keeps its numbers until another one is read; what runs, and what is held, keeps them longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.errors import NonFiniteError, SourceError
from fewbit.frontends.torch.filling import fill, names_of
from fewbit.frontends.torch.forward_attribute import get_forward, set_forward
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.frontends.torch.resident_memory import trim
from fewbit.frontends.torch.stored import to_stored
from fewbit.frontends.torch.stored_floats import pieces
from fewbit.interfaces import Replacement
from fewbit.schemes.scheme import ScaleType

Readers = Mapping[str, Callable[[], np.ndarray[Any, Any]]]


class Residence:
    """The parts of a model without numbers, and what reads them; as a context, a part that is called is read first."""

    def __init__(self, model: nn.Module, tensors: Readers, blocks: Sequence[str] = ()) -> None:
        self._model, self._tensors = model, tensors
        #: Under which names each tensor hangs, and what stands there while it has no numbers.
        self._names = names_of(model)
        self._empty = model.state_dict(keep_vars=True)
        #: By part the names of its tensors, in the order of the model.
        self.parts: dict[str, list[str]] = {}
        for name in self._empty:
            block = next((own for own in blocks if name.startswith(f"{own}.")), None)
            self.parts.setdefault(name.rpartition(".")[0] if block is None else block, []).append(name)
        self._homes = {name: part for part, names in self.parts.items() for name in names}
        #: Quantizes what needs no data as soon as a part is read: in memory it would have been, before all.
        self.dressed: Callable[[str], None] = lambda _: None
        #: Is told of a part that was let go of.
        self.dropped: Callable[[str], None] = lambda _: None
        self._resident: dict[str, list[Replacement]] = {}
        self._busy: list[str] = []
        self._undo = ExitStack()

    def part_of(self, layer: str) -> str:
        """Return the part that the weight of a layer is in."""
        return self._homes[f"{layer}.weight"]

    def load(self, part: str) -> None:
        """Read a part, unless it is there, and let go of the others."""
        if part in self._resident:
            return
        for other in list(self._resident):
            if other not in self._busy:
                self.drop(other)
        self._read(part)
        with self.held(part):
            self.dressed(part)

    @contextmanager
    def glimpsed(self, part: str) -> Iterator[None]:
        """Read a part beside those that are there, as it is, and let go of it behind the block of code."""
        there = part in self._resident
        if not there:
            self._read(part)
        yield
        if not there:
            self.drop(part)

    @contextmanager
    def held(self, part: str) -> Iterator[None]:
        """Read a part and keep it until the block of code ends, and then until another one is read."""
        self._busy.append(part)
        try:
            self.load(part)
            yield
        finally:
            self._busy.remove(part)

    def installed(self, replacement: Replacement) -> None:
        """Take note of a layer whose quantized form is installed: it goes with its part."""
        self._resident[self.part_of(replacement.layer.name)].append(replacement)

    def empty_layer(self, name: str) -> None:
        """Let go of the float weight of a layer, which has another form by now."""
        original = next(own for own in self._resident[self.part_of(name)] if own.layer.name == name)
        module: Any = original.original  # type: ignore[attr-defined]
        module._parameters["weight"] = self._empty[f"{name}.weight"]

    def codes(self, part: str) -> Iterator[tuple[str, Any]]:
        """Yield what stands for the quantized layers of a part in files, by their names."""
        for replacement in self._resident[part]:
            name, module = replacement.layer.name, self._model.get_submodule(replacement.layer.name)
            assert isinstance(module, QuantizedLayer)
            if module.input is not None and module.input.scheme.static:
                yield name, module.input.activation
            yield name, module.qtensor

    def drop(self, part: str) -> None:
        """Let go of the numbers of a part."""
        for replacement in self._resident.pop(part, ()):
            replacement.restore()
        for name in self.parts[part]:
            parent, _, attribute = name.rpartition(".")
            module = self._model.get_submodule(parent)
            own = module._parameters if attribute in module._parameters else module._buffers
            own[attribute] = self._empty[name]
        self.dropped(part)
        trim()

    def stored(self, part: str, names: Mapping[str, object], kind: ScaleType) -> Iterator[tuple[str, Any, int]]:
        """Yield those tensors of a part that are called in `names`, as `kind`, and how many numbers that changed.

        Raises:
            NonFiniteError: a number that is not finite in that type.

        """
        target = getattr(torch, kind)
        for name in self.parts[part]:
            if name not in names:
                continue
            tensor = self._hanging(name).detach()
            changed = 0
            for piece in pieces(tensor) if tensor.dtype.is_floating_point else ():
                rounded = piece.to(target)
                if bad := int((~torch.isfinite(rounded)).sum()):
                    raise NonFiniteError(
                        f"{name}: {bad} of its numbers are not finite in {kind}; repair them, "
                        "or use another dtype where they overflow"
                    )
                changed += int((rounded.to(piece.dtype) != piece).sum())
            yield name, to_stored(tensor, kind), changed

    def __enter__(self) -> Residence:
        for part in self.parts:
            module = self._model.get_submodule(part)
            before = get_forward(module)
            self._undo.callback(set_forward, module, before)
            module.forward = self._entering(part, module)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        for part in list(self._resident):
            self.drop(part)

    def _entering(self, part: str, module: nn.Module) -> Callable[..., Any]:
        own = module.forward

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.held(part):
                # Reading it may have put another form of a layer in its place.
                now = self._model.get_submodule(part)
                return own(*args, **kwargs) if now is module else now(*args, **kwargs)

        return forward

    def _read(self, part: str) -> None:
        self._resident[part] = []
        for name in self.parts[part]:
            stored = next((own for own in self._names[name] if own in self._tensors), None)
            if stored is None:
                raise SourceError(f"no file holds {name}; is the download complete?")
            fill(self._model, [name], self._tensors[stored]())
            self._hanging(name).requires_grad_(False)

    def _hanging(self, name: str) -> Tensor:
        """Return the tensor of the float model under `name`; where the layer was replaced, that which the form has."""
        parent, _, attribute = name.rpartition(".")
        module = self._model.get_submodule(parent)
        found: Tensor | None = module._parameters.get(attribute)
        found = module._buffers.get(attribute) if found is None else found
        assert found is not None
        return found
