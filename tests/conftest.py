"""What every test may use: array frameworks, and one hypothesis profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import array_api_strict
import hypothesis
import numpy as np
import pytest
import signal_stack

# Same examples in every run and on every machine; no deadline, since how long an example takes is not the claim.
hypothesis.settings.register_profile("fewbit", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("fewbit")


#: Files that take minutes, handed out first: at the end they would keep one process busy and the others waiting.
LONGEST = (
    "tests/test_walkthroughs.py",
    "tests/cli/test_commands.py",
    "tests/test_smollm2.py",
    "tests/peers/test_gguf_in_ik_llama.py",
    "tests/training/test_finetuning.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONGEST)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=8, help="how often a run is killed at a random moment")
    parser.addoption("--kill-points", type=int, default=3, help="at how many more points of writing a run is killed")
    parser.addoption("--mutations", type=int, default=10_000, help="how many damaged checkpoints are tried")
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
def depthwise_nets(onnx_model: Callable[..., Any]) -> Callable[..., Any]:
    """Build the same small network with BatchNorms as a module and as a graph; `clip` 6: with ReLU6.

    stem, expand, deep (depthwise, its input padded or not), project with a residual connection, mean, out.
    """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, clip: float | None, padding: int) -> None:
            super().__init__()
            self.stem, self.norm0 = nn.Conv2d(1, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)
            self.expand, self.norm1 = nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12)
            self.deep, self.norm2 = nn.Conv2d(12, 12, 3, groups=12, padding=padding, bias=False), nn.BatchNorm2d(12)
            self.project, self.norm3 = nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)
            self.out = nn.Linear(6, 4)
            self.act0, self.act1, self.act2, self.act3 = (nn.ReLU6() if clip else nn.ReLU() for _ in range(4))
            self.inner = 1 - padding

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.act0(self.norm0(self.stem(x)))
            wide = self.act1(self.norm1(self.expand(first)))
            found = self.norm3(self.project(self.act2(self.norm2(self.deep(wide)))))
            cut = self.inner
            return self.out(self.act3(found + first[:, :, cut : 7 - cut, cut : 7 - cut]).mean((2, 3)))

    def graph(clip: float | None, padding: int) -> str:
        act = (lambda given: f"Clip({given}, zero, six)") if clip else (lambda given: f"Relu({given})")
        same = "s = Slice(b0, starts, ends, axes)" if not padding else "s = Identity(b0)"

        def norm(number: int, given: str) -> str:
            names = ", ".join(f'"norm{number}.{own}"' for own in ("weight", "bias", "running_mean", "running_var"))
            return f"BatchNormalization({given}, {names})"

        return f"""(float[n, 1, 15, 15] x) => (float[n, 4] y) {{
            a0 = Conv<strides=[2, 2]>(x, "stem.weight")
            n0 = {norm(0, "a0")}
            b0 = {act("n0")}
            a1 = Conv(b0, "expand.weight")
            n1 = {norm(1, "a1")}
            b1 = {act("n1")}
            a2 = Conv<group=12, pads=[{padding}, {padding}, {padding}, {padding}]>(b1, "deep.weight")
            n2 = {norm(2, "a2")}
            b2 = {act("n2")}
            a3 = Conv(b2, "project.weight")
            n3 = {norm(3, "a3")}
            {same}
            t = Add(n3, s)
            b3 = {act("t")}
            p = GlobalAveragePool(b3)
            f = Flatten(p)
            y = Gemm<transB=1>(f, "out.weight", "out.bias")
        }}"""

    def build(*, clip: float | None = None, padding: int = 1, high: float = 0.0) -> tuple[Any, Any, list[torch.Tensor]]:
        torch.manual_seed(0)
        net = Net(clip, padding)
        for norm in (net.norm0, net.norm1, net.norm2, net.norm3):
            norm.momentum = None
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.5)
            with torch.no_grad():
                norm.bias[::3] += high
        with torch.no_grad():
            for seed in range(4):
                net.train()(torch.randn(64, 1, 15, 15, generator=torch.Generator().manual_seed(seed)))
        net.eval()
        constants = {name: values.numpy() for name, values in net.state_dict().items() if "num_batches" not in name}
        if clip:
            constants |= {"zero": np.asarray(0.0, np.float32), "six": np.asarray(clip, np.float32)}
        if not padding:
            constants |= {
                name: np.asarray(own, np.int64)
                for name, own in (("starts", [1, 1]), ("ends", [6, 6]), ("axes", [2, 3]))
            }
        batches = [torch.randn(16, 1, 15, 15, generator=torch.Generator().manual_seed(seed)) for seed in range(9, 12)]
        return net, onnx_model(graph(clip, padding), constants), batches

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


@pytest.fixture(scope="module", autouse=True)
def _signals_can_be_heard() -> Iterator[None]:
    yield
    assert signal_stack.is_there(), "the stack for signals is gone: the next one kills the process"


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


#: Small language models by family: what is another than in `_SIZES`, by the class of their configuration.
_SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32}  # fmt: skip
FAMILIES = {
    "llama": ("LlamaConfig", {"rope_theta": 5e4}),
    "llama tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama biases": ("LlamaConfig", {"attention_bias": True, "head_dim": 32}),
    "llama 3": ("LlamaConfig", {"rope_parameters": _LLAMA3}),
    "llama linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "llama yarn": ("LlamaConfig", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
                                                       "original_max_position_embeddings": 32}}),
    "mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma": ("GemmaConfig", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2Config", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16,
                                    "num_hidden_layers": 7}),
    "phi3": ("Phi3Config", {"pad_token_id": 0, "sliding_window": None}),
    "gpt2": ("GPT2Config", {}),
    "gpt2 untied": ("GPT2Config", {"tie_word_embeddings": False}),
}  # fmt: skip
_OF_GPT2 = {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}


@pytest.fixture(scope="session")
def language_model() -> Callable[..., Any]:
    """Make a small language model of a family, its norms and biases random too, with further settings."""

    def made(family: str, **settings: Any) -> Any:
        import torch
        import transformers

        torch.manual_seed(0)
        kind, own = FAMILIES[family]
        sizes = _OF_GPT2 if kind == "GPT2Config" else _SIZES
        config = getattr(transformers, kind)(**{**sizes, **own, **settings})
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.05))
        return model

    return made


@pytest.fixture(scope="session")
def small_llama() -> Callable[..., Any]:
    """Make a small Llama in a type of torch, float32 unless told, as it is initialized, with further settings."""

    def made(dtype: Any = None, **settings: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        kind = dtype or torch.float32
        return LlamaForCausalLM(LlamaConfig(**{**_SIZES, "dtype": kind, **settings})).to(kind).eval()

    return made
