"""Merged rotations: an orthogonal Q in the residual stream and one in each head spread outliers over all channels.

What writes the stream becomes Q^T W, what reads it W diag(gain) Q, the norms between keep no gain; values and output
projections likewise, head by head. Source: QuaRot, arXiv 2404.00456, section 4; SliceGPT, 2401.15024, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from fewbit.errors import RecipeError
from fewbit.transforms import Applied
from fewbit.transforms.link import Channels
from fewbit.transforms.scope import Rounded

Matrix: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

#: Channels that a head has at least.
_LEAST = 8


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotate the residual stream, and values inside each head."""

    #: It changes numbers only.
    removes_layers: ClassVar[bool] = False
    #: Widths stay.
    widens_layers: ClassVar[bool] = False
    #: Rotate values inside each head too.
    heads: bool = True
    #: What the signs and small factors of the matrices are drawn from.
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.heads, bool):
            raise RecipeError(f"rotation: heads = {self.heads!r:.80} is not true or false")
        if type(self.seed) is not int or self.seed < 0:
            raise RecipeError(f"rotation: seed {self.seed!r:.80} is no number from 0 on")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "rotation"

    def problem(self, schemes: Mapping[str, Rounded]) -> str | None:
        """Return that nothing is rounded to a scale, if so."""
        if any(own.weight.scaled or (own.input is not None and own.input.scaled) for own in schemes.values()):
            return None
        return "rotation spreads outliers over numbers that share a scale, and nothing has one; leave it out"

    def __call__(self, model: Any, frontend: Any, batch: Any) -> Applied:
        """Rotate, and keep it only if the model's output on `batch` stays what it was."""
        applied: Applied = frontend.rotate(model, batch, self._matrix, heads=self.heads)
        return applied

    def _matrix(self, width: int, *, keep_mean: bool = False) -> Matrix:
        return mean_keeping(width, self.seed) if keep_mean else orthogonal(width, self.seed)


def orthogonal(width: int, seed: int) -> Matrix:
    """Return an orthogonal matrix (width, width) that spreads every channel over all: Walsh x a random one, with signs.

    The Walsh matrix has the size of the largest power of two in `width`; `RandomState` draws alike in every NumPy.

    >>> bool(np.allclose(orthogonal(12, 0) @ orthogonal(12, 0).T, np.eye(12)))
    True
    """
    power = width & -width
    random = np.random.RandomState(seed)
    rest = width // power
    q, r = np.linalg.qr(random.standard_normal((rest, rest)))
    walsh = np.ones((1, 1))
    while len(walsh) < power:
        walsh = np.block([[walsh, walsh], [walsh, -walsh]]) / np.sqrt(2)
    signs = random.choice((-1.0, 1.0), width)
    found: Matrix = signs[:, None] * np.kron(walsh, q * np.sign(np.diag(r)))
    return found


def mean_keeping(width: int, seed: int) -> Matrix:
    """Return an orthogonal matrix with rows that sum to 1, so x Q has the mean of x: what LayerNorm commutes with.

    A reflection B takes the constant direction to the first axis; B diag(1, Q') B leaves it and rotates the others.

    >>> mean_keeping(6, 0).sum(axis=1).round(12).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    if width == 1:
        return np.ones((1, 1))
    normal = np.full(width, 1 / np.sqrt(width))
    normal[0] -= 1.0
    reflection = np.eye(width) - 2.0 * np.outer(normal, normal) / (normal @ normal)
    inner = np.eye(width)
    inner[1:, 1:] = orthogonal(width - 1, seed)
    found: Matrix = reflection @ inner @ reflection
    return found


def head_sizes(channels: Channels) -> list[int]:
    """Return the sizes that heads may have, the largest first: runs of channels that all inputs fall into.

    >>> head_sizes(np.asarray([*range(8), *range(8), *range(8, 16), *range(8, 16)]))
    [8]
    """
    width = len(channels)
    sizes = [size for size in range(width, _LEAST - 1, -1) if width % size == 0]
    return [size for size in sizes if _falls_into(channels.reshape(-1, size))]


def stream_sentence(width: int, norms: int, writers: int, *, keep_mean: bool) -> str:
    """Return what the report says of a residual stream that was rotated.

    >>> stream_sentence(64, 2, 1, keep_mean=True)
    'rotation: the residual stream of 64 channels was rotated, its mean kept: 2 norms read it, 1 layer writes it'
    """
    mean = ", its mean kept" if keep_mean else ""
    read = "1 norm reads" if norms == 1 else f"{norms} norms read"
    write = "1 layer writes" if writers == 1 else f"{writers} layers write"
    return f"rotation: the residual stream of {width} channels was rotated{mean}: {read} it, {write} it"


def heads_sentence(count: int) -> str:
    """Return what the report says of `count` layers whose values were rotated inside each head.

    >>> heads_sentence(1)
    'rotation: values inside the heads of 1 layer were rotated'
    """
    return f"rotation: values inside the heads of {count} layer{'' if count == 1 else 's'} were rotated"


def _falls_into(heads: Channels) -> bool:
    """Whether each row is a run of channels, and no two runs overlap without being the same."""
    runs = bool((heads == heads[:, :1] + np.arange(heads.shape[1])).all()) and bool((heads[:, 0] >= 0).all())
    starts = np.unique(heads[:, 0])
    return runs and bool((np.diff(starts) >= heads.shape[1]).all())
