"""MiniLM and blocks of smollm2 in Flax NNX and Equinox: numbers, codes, scales and outputs are PyTorch's."""

from __future__ import annotations

import copy
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fewbit as fb
from fewbit.errors import MissingExtraError
from fewbit.frontends.jax.observation import Observation
from fewbit.frontends.jax.packed_weight import is_packed
from fewbit.frontends.torch.calibration import CalibrationRun
from fewbit.qtensor import QTensor
from fewbit.sources import open_source

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[3] / "benchmarks"


@dataclass(frozen=True)
class Subject:
    """A PyTorch model of two layers, what makes a JAX model of it, and inputs of both."""

    script: ModuleType
    model: Any
    inputs: tuple[np.ndarray, ...]
    #: Where outputs count: not behind padding.
    counted: np.ndarray
    #: What the PyTorch front end made of copies, by the rules, and the statistics that it gathered.
    results: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)

    def quantized(self, rules: Any) -> tuple[Any, dict[str, Any]]:
        if str(rules) not in self.results:
            self.results[str(rules)] = self._quantized(rules)
        return self.results[str(rules)]

    def _quantized(self, rules: Any) -> tuple[Any, dict[str, Any]]:
        seen, stages = {}, CalibrationRun.__iter__

        def watched(parts):
            for part in parts:
                seen.update(copy.deepcopy(dict(part.statistics)))
                yield part

        names = ("input_ids", "attention_mask")[: len(self.inputs)]
        batches = [dict(zip(names, map(torch.from_numpy, self.inputs), strict=True))]
        calibration = fb.Calibration(data=batches, sequential=False)
        recipe = rules if isinstance(rules, str) else fb.Recipe([fb.keep(kind="head", optional=True), *rules])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CalibrationRun, "__iter__", lambda run: (watched(parts) for parts in stages(run)))
            return fb.quantize(copy.deepcopy(self.model), recipe, calibration=calibration), seen

    def torch(self, model: Any) -> np.ndarray:
        with torch.no_grad():
            found = model(*(torch.from_numpy(own) for own in self.inputs))
        return self.counted * (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()

    def jax(self, function: Any, parameters: Any) -> np.ndarray:
        return self.counted * np.asarray(function(parameters, *(jnp.asarray(own) for own in self.inputs)))


def minilm(script: Any) -> Subject:
    try:
        folder = script.minilm_folder()
    except ImportError as error:
        pytest.skip(str(error))
    model = open_source(folder).load().eval()
    model.encoder.layer, model.config.num_hidden_layers, model.pooler = model.encoder.layer[:2], 2, None
    tokens = np.random.default_rng(0).integers(1000, 20_000, (4, 13))
    mask = np.ones_like(tokens)
    mask[1, 9:] = 0
    return Subject(script, model, (tokens, mask), mask[..., None])


def smollm2(script: Any) -> Subject:
    try:
        model = open_source("smollm2").load()
    except MissingExtraError as error:
        pytest.skip(str(error))
    tokens = np.random.default_rng(0).integers(1000, 20_000, (3, 11))
    return Subject(script, script.first_blocks(model, 2), (tokens,), np.ones((1, 1, 1)))


SUBJECTS = {"minilm": minilm, "smollm2": smollm2}
WAYS = ("in_nnx", "in_equinox")


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request):
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return SUBJECTS[request.param](importlib.import_module(f"jax_{request.param}"))


@pytest.fixture(params=WAYS)
def carried(subject, request):
    return getattr(subject.script, request.param)(subject.model)


def arrays_of(qtensor: QTensor):
    for name in ("codes", "scale", "zero_point", "minimum"):
        part = getattr(qtensor, name)
        if isinstance(part, QTensor):
            yield from ((f"{name}.{inner}", own) for inner, own in arrays_of(part))
        elif part is not None:
            yield name, np.asarray(part)


def assert_same_codes(carried: Any, quantized: Any, result: Any) -> dict[str, Any]:
    """Compare each layer with the one that it is in PyTorch, and return them by name."""
    layers = {name: own for name, own in carried.layers(quantized, is_packed).items() if is_packed(own)}
    theirs = {name: own for name, own in result.model.named_modules() if hasattr(own, "qtensor")}
    assert layers.keys() == theirs.keys()
    assert len(layers) >= 12
    for name, packed in layers.items():
        mine, want = (dict(arrays_of(own)) for own in (packed.map(np.asarray).qtensor(), theirs[name].qtensor))
        assert mine.keys() == want.keys(), name
        for part in want:
            np.testing.assert_array_equal(mine[part], want[part], err_msg=f"{name}: {part}", strict=True)
    return layers


def assert_close(mine: np.ndarray, want: np.ndarray, share: float) -> None:
    """Compare outputs: the greatest difference, as a share of the greatest output."""
    assert np.abs(mine - want).max() <= share * np.abs(want).max()


def test_float_outputs_are_those_of_pytorch(subject, carried):
    mine, want = subject.jax(jax.jit(carried.function), carried.parameters), subject.torch(subject.model)
    assert_close(mine, want, 5e-6)  # sums of at most 1536 float32 numbers in another order


#: Rules or presets, and how far outputs may differ: where inputs are rounded, a number between two codes may go to
#: either, one step of 1/255 of a row's range, and what follows from it.
CASES = {
    "w8a16": ("w8a16", 1e-5),
    "fp8a16": ("fp8a16", 1e-5),
    "nf4": ("nf4", 1e-5),
    "mxfp4": ([fb.Rule(kind="linear", weight="mxfp4")], 1e-5),
    "nvfp4": ([fb.Rule(kind="linear", weight="nvfp4")], 1e-5),
    "w8a8": ("w8a8", 0.02),
    "fp8": ("fp8", 0.03),
    "w4a8 nearest": ([fb.Rule(kind="linear", weight="int4 g32", input="int8")], 0.02),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_scales_and_outputs_are_those_of_pytorch(subject, carried, case):
    rules, share = CASES[case]
    result, _ = subject.quantized(rules)
    run, quantized = fb.jax.quantize(carried.function, carried.parameters, rules, *subject.inputs)
    assert_same_codes(carried, quantized, result)
    mine, want = subject.jax(run, quantized), subject.torch(result.model)
    assert_close(mine, want, share)
    # It is the quantized model that is compared with, not the float one.
    assert np.abs(want - subject.torch(subject.model)).max() > 50 * np.abs(mine - want).max() or share > 1e-4


@pytest.mark.parametrize(
    "rule",
    [
        fb.Rule(kind="linear", weight="int8", input="int8 static"),
        fb.Rule(kind="linear", weight="int3 g32 asym", input="int8 static mse", algorithm="gptq"),
    ],
    ids=str,
)
def test_the_same_statistics_give_the_same_codes_and_ranges(subject, carried, rule, monkeypatch):
    """Statistics are those that the PyTorch front end gathers, so that no sum differs."""
    result, seen = subject.quantized([rule])

    def replayed(self, *_):
        for name in self._wanted:
            layer, _, _ = name.rpartition(".")
            self.seen[name, 0] = seen[carried.torch_name(layer)]

    monkeypatch.setattr(Observation, "run", replayed)
    data = [tuple(jnp.asarray(own) for own in subject.inputs)]
    run, quantized = fb.jax.quantize(carried.function, carried.parameters, [rule], *data[0], calibration=data)
    layers = assert_same_codes(carried, quantized, result)
    for name, packed in layers.items() if rule.input else ():
        given, theirs = packed.map(np.asarray).activation(), result.model.get_submodule(name).input.activation
        np.testing.assert_array_equal(given.scale, theirs.scale.numpy(), err_msg=name, strict=True)
        np.testing.assert_array_equal(given.zero_point, theirs.zero_point.numpy(), err_msg=name, strict=True)
    assert_close(subject.jax(run, quantized), subject.torch(result.model), 1e-5 if rule.input is None else 0.05)


def test_a_tied_table_is_quantized_once_for_embedding_and_head(subject, carried):
    if len(subject.inputs) != 1:
        pytest.skip("MiniLM has no head")
    rules = [fb.Rule(kind="embedding", weight="int8")]
    run, quantized = fb.jax.quantize(carried.function, carried.parameters, rules, *subject.inputs)
    assert [row.kind for row in run.table if row.becomes == "int8 channel"] == ["embedding", "linear"]
    mine = subject.jax(run, quantized)
    want = subject.jax(jax.jit(carried.function), fb.jax.dequantize(quantized))
    assert_close(mine, want, 1e-5)
    assert np.abs(mine - subject.torch(subject.model)).max() > 1e-3 * np.abs(want).max()
