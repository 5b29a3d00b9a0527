"""ReLU in the place of ReLU6, so that factors pass: what was cut at 6 no longer is.

Source: Nagel et al. 2019, arXiv 1906.04721, section 5.1.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fewbit.transforms import Applied
from fewbit.transforms.scope import Rounded


@dataclass(frozen=True, slots=True)
class ReplaceRelu6:
    """What equalization has done first where `replace_relu6` asks for it."""

    #: A model that a file is loaded into would still cut at 6.
    removes_layers: ClassVar[bool] = True
    #: Widths stay.
    widens_layers: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The word for it in reports."""
        return "equalization, replace_relu6"

    def problem(self, schemes: Mapping[str, Rounded]) -> None:
        """Equalization itself says where it makes no sense."""

    def __call__(self, model: Any, frontend: Any, batch: Any) -> Applied:
        """Replace them, and measure on `batch` what that does to the output."""
        applied: Applied = frontend.replace_relu6(model, batch)
        return applied


def replaced_sentence(count: int, change: float | None) -> str:
    """Return what the report says of so many; `change` is |after - before| / |before| at the output, if measured.

    >>> replaced_sentence(2, 0.0123)
    'equalization: 2 ReLU6 became ReLU, which changes the output by 1.23 % of its size'
    """
    effect = (
        "no data shows by how much the output changes"
        if change is None
        else (f"which changes the output by {100 * change:.3g} % of its size")
    )
    return f"equalization: {count} ReLU6 became ReLU, {effect}"


#: Where there is none.
NO_RELU6 = "equalization: replace_relu6 found no ReLU6"
