"""What every test may use: array frameworks, and one hypothesis profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import array_api_strict
import hypothesis
import numpy as np
import pytest

# Same examples in every run and on every machine; no deadline, since how long an example takes is not the claim.
hypothesis.settings.register_profile("fewbit", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("fewbit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=8, help="how often a run is killed at a random moment")
    parser.addoption("--every-row", action="store_true", help="compile every row of `fewbit support`: 20 minutes more")


@dataclass(frozen=True)
class Framework:
    """An array framework, as two functions that tests need of it."""

    name: str
    from_numpy: Callable[[np.ndarray], Any]
    to_numpy: Callable[[Any], np.ndarray]


def _numpy() -> Framework:
    return Framework("numpy", np.array, np.asarray)


def _read_only() -> Framework:
    def from_numpy(values: np.ndarray) -> np.ndarray:
        values = np.array(values)
        values.flags.writeable = False
        return values

    return Framework("read-only", from_numpy, np.asarray)


def _strict() -> Framework:
    # Not on the default device: mixing in an array that was made without `device=` is then an error.
    there, here = array_api_strict.Device("device1"), array_api_strict.Device("CPU_DEVICE")
    return Framework(
        "strict",
        lambda values: array_api_strict.asarray(values, device=there),
        lambda array: np.from_dlpack(array.to_device(here)),
    )


def _torch() -> Framework:
    import torch

    return Framework("torch", lambda values: torch.from_numpy(np.array(values)), lambda array: array.detach().numpy())


_FRAMEWORKS = {"numpy": _numpy, "read-only": _read_only, "strict": _strict, "torch": _torch}


@pytest.fixture(params=_FRAMEWORKS)
def xp(request: pytest.FixtureRequest) -> Iterator[Framework]:
    """Each array framework in turn; the strict one without boolean indexing and data-dependent shapes."""
    with array_api_strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
        yield _FRAMEWORKS[request.param]()


@pytest.fixture(scope="session")
def onnx_model() -> Callable[..., Any]:
    """Build an ONNX model from the text of its graph and its constants by name; of a shape they are random."""
    import onnx

    def build(text: str, constants: dict[str, Any], *, opset: int = 17, seed: int = 0) -> onnx.ModelProto:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> main {text}')
        random = np.random.default_rng(seed)
        for name, given in constants.items():
            values = given
            if isinstance(given, tuple):  # the size of an output stays about that of its input
                values = (random.normal(size=given) / np.sqrt(max(1, np.prod(given[1:])))).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        onnx.checker.check_model(model)
        return model

    return build


@pytest.fixture(scope="session")
def signal_to_noise() -> Callable[[np.ndarray, np.ndarray], float]:
    """Return a function from what is exact and what was made of it, of one shape, to their ratio in dB."""

    def ratio(signal: np.ndarray, other: np.ndarray) -> float:
        noise = np.square(signal - other, dtype=np.float64).sum()
        return float(10 * np.log10(np.square(signal, dtype=np.float64).sum() / max(noise, 1e-300)))

    return ratio


@pytest.fixture(scope="session")
def first_output() -> Callable[[Any], np.ndarray]:
    """Return a function from what a module gave, a tensor or tensors by name, to the numbers of the first."""

    def numbers(output: Any) -> np.ndarray:
        found = next(iter(output.values())) if isinstance(output, dict) else output
        return found.detach().numpy()

    return numbers


@pytest.fixture(autouse=True)
def _gradients_stay_on() -> Iterator[None]:
    """What ran must not leave torch without gradients: later tests, and users, would fail far from the cause."""
    import torch

    yield
    on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert on, "gradients were left switched off"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Handing work that is small from one pool of threads to another takes longer than the work."""
    import numba
    import torch

    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])
