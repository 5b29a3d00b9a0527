"""A link: channels that one module puts out and others read, so that numbers can move from one weight to the others.

consumer(producer(x)) stays the same with the producer's channel c divided by f_c and every column that reads it
multiplied by f_c. Sources of the idea: SmoothQuant, arXiv 2211.10438; AWQ, 2306.00978; equalization, 1906.04721.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

#: Float64 numbers by channel.
Factors: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Channels: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


def storable(gain: Factors, factors: Factors, beside: float = 0.0) -> Factors:
    """Return factors close by under which what is stored of a divided gain has 8 bits, as every 16-bit file holds it.

    That is the gain less what is added to it each time, `beside`.

    >>> gain = np.asarray([3.0, 0.0])
    >>> (gain / storable(gain, np.asarray([1.7, 1.7]))).tolist()
    [1.765625, 0.0]
    """
    mantissa, exponent = np.frexp(gain / factors - beside)
    divided = np.ldexp(np.rint(mantissa * 256) / 256, exponent) + beside
    # A gain of 0 stays 0 under every factor; one that becomes 0 cannot.
    lost = (divided == 0.0) | (gain == 0.0)
    found: Factors = np.where(lost, factors, gain / np.where(lost, 1.0, divided))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """Where the output channels of a module go; that nothing else reads them is proven before there is one.

    >>> link = Link("value", ("output",), np.asarray([0, 1, 0, 1, -1]), 2)
    >>> link.gathered(np.asarray([1.0, 2.0, 3.0, 1.0, 9.0]), np.maximum.reduce)
    array([3., 2.])
    >>> link.spread(np.asarray([3.0, 2.0]))
    array([3., 2., 3., 2., 1.])
    """

    #: Dotted path of what divides: a norm, or a linear layer or convolution with its rows.
    producer: str
    #: Of the layers that multiply.
    consumers: tuple[str, ...]
    #: int64 (inputs,): the output channel that each input channel of the consumers is; -1: none. Under grouped-query
    #: attention a channel of the values is several channels of the output projection's input.
    channels: Channels
    #: Output channels of the producer.
    outputs: int

    @property
    def read(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the producer's channels the consumers read, (outputs,)."""
        return np.isin(np.arange(self.outputs), self.channels)

    def spread(self, factors: Factors, otherwise: float = 1.0) -> Factors:
        """Return (inputs,) from (outputs,): the factor of each input channel of the consumers, 1 where none is."""
        return np.where(self.channels >= 0, factors[self.channels], otherwise)

    def gathered(self, values: Factors, reduce: Callable[[Factors], Any], unread: float = 1.0) -> Factors:
        """Return (outputs,) from (inputs,): `reduce` of the values of all that a channel goes to; else `unread`.

        `reduce` takes (several, channels); one with fewer readers has its last value repeated.
        """
        found = np.full(self.outputs, unread)
        used = np.flatnonzero(self.channels >= 0)
        order = used[np.argsort(self.channels[used], kind="stable")]
        channels, starts, counts = np.unique(self.channels[order], return_index=True, return_counts=True)
        if len(channels):
            places = starts + np.minimum(np.arange(counts.max())[:, None], counts - 1)
            found[channels] = reduce(values[order[places]])
        return found
