"""The entropy search on what calibration sees."""

import numpy as np
import pytest

from fewbit.ranges.entropy import Entropy
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.histogram import Histogram


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_zeros_behind_a_relu_do_not_draw_the_threshold_to_them(share, symmetric):
    draw = np.random.default_rng(0)
    values = np.abs(draw.standard_normal(1 << 15)).astype(np.float32)
    zeros = np.zeros(int(len(values) * share / (1 - share)), np.float32)
    grid = parse_scheme("int8 tensor entropy" if symmetric else "int8 tensor asym entropy").grid
    found = []
    for own in (values, np.concatenate([values, zeros])):
        seen = Histogram.init(1, own)
        seen.update(own[:, None])
        found.append(float(Entropy().calibrated(seen, grid)[1]))
    alone, beside = found
    # The bin at 0 holds what its neighbour does in both, but for what chance put there.
    assert beside == pytest.approx(alone, rel=0.1)
    assert beside > 2.0
