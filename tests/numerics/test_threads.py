"""Compiled loops beside torch's threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewbit.algorithms.gptq import Gptq
from fewbit.numerics.kmeans import learned_levels
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.second_moment import SecondMoment


def solved(weight):
    moment = SecondMoment.identity(weight.shape[1], weight)
    Gptq()(weight, {"second_moment": moment}, parse_scheme("int4 g64"))


LOOPS = {
    "gptq": solved,
    "spans": lambda weight: quantize(weight, parse_scheme("q4_k")),
    "small floats": lambda weight: quantize(weight, parse_scheme("mxfp4 mse")),
    "k-means": lambda weight: learned_levels(weight.numpy(), np.ones(weight.shape), 4),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_torch_has_as_many_threads_as_before(loop, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        LOOPS[loop](torch.randn(128, 256, generator=torch.Generator().manual_seed(0)))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
