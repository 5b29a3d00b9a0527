"""Quantized folders to damage, and the refusal that every damage has to end in."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import fewbit as fb
from fewbit.errors import FewbitError
from fewbit.schemes.notation import input_scheme_to_text, parse_input_scheme

SCHEMES = {
    "asym": "int4 g32 asym", "sym": "int4 g32", "tensor": "int3 tensor asym", "float": "e4m3", "byte": "int8",
    "token": "int4 g32", "static": "int8 asym", "static sym": "int4 g32",
}  # fmt: skip
#: Schemes of the inputs; the others stay float.
INPUTS = {"token": "int8", "static": "int4 static", "static sym": "e4m3 static"}


def float_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 3))


@pytest.fixture(scope="session")
def module():
    """Make the module that the folders were made from."""
    return float_module


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder for each scheme: layer `0` quantized, layer `1` float; tests must not change them."""
    root = tmp_path_factory.mktemp("made")
    for name, scheme in SCHEMES.items():
        recipe = fb.Recipe([fb.Rule("0", weight=scheme, input=INPUTS.get(name)), fb.keep("1")])
        seen = [torch.randn(20, 64)] if "static" in name else None
        fb.quantize(float_module(), recipe, to="compressed-tensors", calibration=seen).save(root / name)
    return root


@pytest.fixture
def broken(made, tmp_path):
    """Copy the folder of a scheme with some tensors or some of its configuration changed."""

    def change(scheme, *, tensors=None, config=None):
        arrays = load_file(made / scheme / "model.safetensors") if scheme != "float" else None
        configuration = json.loads((made / scheme / "config.json").read_text())
        if tensors is not None:
            tensors(arrays)
        if config is not None:
            config(configuration["quantization_config"])
        (tmp_path / "config.json").write_text(json.dumps(configuration))
        if arrays is None:
            (tmp_path / "model.safetensors").write_bytes((made / scheme / "model.safetensors").read_bytes())
        else:
            save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return change


def _refused(folder, kind, message):
    """Load into a module of one's own: the error is of that kind and text, and the module stays as it was."""
    model = float_module()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FewbitError, match=re.escape(message)) as caught:
        fb.load(folder, into=model)
    assert type(caught.value) is kind
    after = model.state_dict()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


@pytest.fixture(scope="session")
def refused():
    """Say that a folder is refused."""
    return _refused


@pytest.fixture(params=SCHEMES)
def readable(request):
    """Every folder by name, with the notation of what its layer is."""
    given = INPUTS.get(request.param)
    spelled = f", input {input_scheme_to_text(parse_input_scheme(given))}" if given else ""
    return request.param, f"{fb.parse_scheme(SCHEMES[request.param])}{spelled}"


@pytest.fixture(scope="session")
def oracle():
    """Return the module that unpacks GPTQ and AWQ by their tables, number by number."""
    path = Path(__file__).with_name("packed_words.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
