"""A list of ONNX nodes while it is written: names are made up, constants are collected beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import helper

Numbers = np.ndarray[Any, Any]
#: What made-up names begin with.
OWN = "fewbit:"


@dataclass(slots=True)
class Nodes:
    """Nodes in the order in which they run."""

    #: Version of the ai.onnx operators.
    opset: int
    protos: list[onnx.NodeProto] = field(default_factory=list)
    #: Constants by name; those of nested graphs too.
    numbers: dict[str, Numbers] = field(default_factory=dict)
    #: Names of the constants that are one number.
    single: dict[float, str] = field(default_factory=dict)
    _names: Iterator[int] = field(default_factory=count)

    def nested(self) -> Nodes:
        """Return an empty list for a graph inside of a node; it shares names and constants."""
        return Nodes(self.opset, numbers=self.numbers, single=self.single, _names=self._names)

    def name(self) -> str:
        """Return a name that nothing else has."""
        return f"{OWN}{next(self._names)}"

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output, and return what that is called."""
        output = self.name()
        self.protos.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, values: Numbers | float) -> str:
        """Return the name of a constant; a Python number becomes float32."""
        if isinstance(values, np.ndarray):
            name = self.name()
            self.numbers[name] = values
            return name
        if values not in self.single:
            self.single[values] = self.constant(np.asarray(values, np.float32))
        return self.single[values]

    def reduce(self, operator: str, value: str, axes: list[int] | None) -> str:
        """Append a reduction over `axes`, kept as 1; `None`: over all."""
        if axes is None:
            return self.add(operator, value, keepdims=1)
        if self.opset >= 18:  # axes became an input
            return self.add(operator, value, self.constant(np.asarray(axes, np.int64)), keepdims=1)
        return self.add(operator, value, axes=axes, keepdims=1)

    def call_last(self, name: str) -> str:
        """Give the output of the last node this name, and return it."""
        self.protos[-1].output[0] = name
        return name
