"""One order of layers out of those in which several runs have called them.

Layers that no run has called together, such as experts with no token of one run in common, come as in the model.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise


def merged_order(orders: Sequence[Sequence[str]], names: Sequence[str]) -> list[str] | None:
    """Return every name in `orders` in an order that all of them keep to, else as in `names`.

    `None`: there is none.

    >>> merged_order([["a", "c"], ["b", "c"]], ["a", "b", "c"])
    ['a', 'b', 'c']
    """
    place = {name: number for number, name in enumerate(names)}
    behind: dict[str, set[str]] = {name: set() for order in orders for name in order}
    before = dict.fromkeys(behind, 0)
    for first, second in {pair for order in orders for pair in pairwise(order)}:
        behind[first].add(second)
        before[second] += 1
    free = [(place[name], name) for name, count in before.items() if not count]
    heapq.heapify(free)
    found = []
    while free:
        _, name = heapq.heappop(free)
        found.append(name)
        for later in behind[name]:
            before[later] -= 1
            if not before[later]:
                heapq.heappush(free, (place[later], later))
    return found if len(found) == len(behind) else None
