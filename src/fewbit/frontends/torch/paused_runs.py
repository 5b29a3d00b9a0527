"""Runs of a block that wait at its layers: all come to one, it is measured and quantized, and they go on from there.

So a block in true-sequential order costs one forward for each batch; measuring and running on apart would cost two.
What is in memory is what a forward holds at the layer, for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.calls import evaluating
from fewbit.frontends.torch.forward_attribute import get_forward, set_forward


@dataclass(slots=True)
class _Run:
    #: The forward, on a stack of its own.
    stack: greenlet
    #: Where it waits; `None` before its start and after its end.
    layer: str | None = None
    #: What the layer is given.
    rows: Tensor | None = None
    output: Any = None

    def go_on(self) -> None:
        """Run up to the next layer that it is to wait at, or to the end."""
        self.rows = None
        # Each run that starts or ends in there finds gradients off, whatever the order in which they take turns;
        # what it sets back on its way out (`no_grad` in its own code) is set back to that.
        with torch.no_grad():
            reached = self.stack.switch()
        if self.stack.dead:
            self.layer, self.output = None, reached
        else:
            self.layer, self.rows = reached

    def give_up(self) -> None:
        """End the run where it waits."""
        with torch.no_grad():
            if self.stack:
                self.stack.throw()


class PausedRuns:
    """Runs that wait at the first layer of each group, in the order of the groups; a group shares one input.

    A run may leave groups out, as one does whose tokens are for other experts.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Sequence[str]], runs: Sequence[Callable[[], Any]]) -> None:
        """Set up; nothing runs yet. No run calls a layer of the groups twice, or in another order than theirs."""
        self._model = model
        self._order: Mapping[str, int] = {name: index for index, names in enumerate(groups) for name in names}
        self._leaders = {name: names[0] for names in groups for name in names}
        #: The group that runs wait at or have passed.
        self._reached = -1
        self._runs = [_Run(greenlet(run)) for run in runs]
        #: By the run in progress and the group's first layer: the input that it got.
        self._inputs: dict[tuple[greenlet, str], ReferenceType[Tensor]] = {}
        self._undo = ExitStack()
        # Runs that take turns would give back the mode of training in another order than they took it.
        self._undo.enter_context(evaluating(model))
        for name in self._order:
            self._undo.callback(set_forward, *self._gate(name))

    def reach(self, leader: str) -> Iterator[Tensor | None]:
        """Let every run go on to the layer called `leader`; yield what it is given there, `None`: it calls it not."""
        place = self._reached = self._order[leader]
        for run in self._runs:
            while not run.stack.dead and (run.layer is None or self._order[run.layer] < place):
                run.go_on()
            yield run.rows if run.layer == leader else None

    def outputs(self) -> Iterator[Any]:
        """Let every run go on to its end, yield what it returns and let go of it."""
        while self._runs:
            run = self._runs[0]
            while not run.stack.dead:
                run.go_on()
            del self._runs[0]
            yield run.output

    def close(self) -> None:
        """Abandon what still waits; the layers are called as before."""
        for run in self._runs:
            run.give_up()
        self._runs.clear()
        self._inputs.clear()
        self._undo.close()

    def _gate(self, name: str) -> tuple[nn.Module, Any]:
        """Make the float layer called `name` wait when a run calls it; return it, and the forward that it had."""
        module = self._model.get_submodule(name)
        own, before = module.forward, get_forward(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            stack = getcurrent()
            if any(stack is run.stack for run in self._runs):
                rows = args[0] if args else next(iter(kwargs.values()))
                known = self._inputs.get((stack, self._leaders[name]))
                if name == self._leaders[name]:
                    self._require_order(name)
                    self._inputs[stack, name] = ref(rows)
                    stack.parent.switch((name, rows))
                elif known is None or known() is not rows:
                    raise CalibrationError(
                        f"{name}: it shares its input with other layers in one calibration batch and not in another; "
                        "give batches that take the same way through the model"
                    )
            # While the run waited the layer may have been replaced.
            now = self._model.get_submodule(name)
            return own(*args, **kwargs) if now is module else now(*args, **kwargs)

        module.forward = forward
        return module, before

    def _require_order(self, leader: str) -> None:
        if self._order[leader] < self._reached:
            raise CalibrationError(
                f"{leader}: one calibration batch calls it after other layers and another before them; calibrate "
                "without sequential order"
            )
