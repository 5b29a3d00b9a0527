"""Where the kernels for CUDA are tested: on the CPU, which has most of their operators, and on a GPU where one is."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
)
def device(request):
    """A device by its type."""
    return request.param


@pytest.fixture
def as_on_cuda():
    """What torch itself checks of an operator's arguments on CUDA: a function of the operator and the arguments."""

    def check(operator, *args, **named):
        with FakeTensorMode():
            fakes = [
                torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="cuda")
                if isinstance(part, Tensor)
                else part
                for part in args
            ]
            return operator(*fakes, **named).shape

    return check
