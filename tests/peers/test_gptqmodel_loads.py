"""transformers with GPTQModel loads the GPTQ and AWQ folders that fewbit writes, and the comparison can fail."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaForCausalLM

import fewbit as fb

ENVIRONMENT = Path(__file__).parents[2] / "benchmarks" / "peers" / "gptqmodel"
PROGRAM = Path(__file__).with_name("gptqmodel_logits.py")
TOKENS = torch.arange(20)[None]
#: Layout, weight, whether weights are shifted up so that zero points are 0, and the checkpoint_format that follows.
CASES = {
    "4 bits": ("gptq", "int4 g32", False, "gptq"),
    "4 bits, asymmetric": ("gptq", "int4 g32 asym", False, "gptq"),
    "4 bits, asymmetric, zero points of 0": ("gptq", "int4 g32 asym", True, "gptq_v2"),
    "4 bits by channel": ("gptq", "int4 channel", False, "gptq"),
    "2 bits, asymmetric": ("gptq", "int2 g32 asym", False, "gptq"),
    "2 bits, asymmetric, zero points of 0": ("gptq", "int2 g32 asym", True, "gptq_v2"),
    "3 bits": ("gptq", "int3 g32", False, "gptq"),
    "3 bits, asymmetric, zero points of 0": ("gptq", "int3 g32 asym", True, "gptq_v2"),
    "8 bits": ("gptq", "int8 g32", False, "gptq"),
    "8 bits by channel, asymmetric, zero points of 0": ("gptq", "int8 channel asym", True, "gptq_v2"),
    "4 bits, a layer kept": ("gptq", "int4 g64", False, "gptq"),
    "awq": ("awq", "int4 g32", False, None),
    "awq, asymmetric": ("awq", "int4 g32 asym", False, None),
    "awq, asymmetric, a layer kept": ("awq", "int4 g64 asym", True, None),
}  # fmt: skip
#: What is changed of a folder so that it must differ: the negative controls.
V2_AS_V1 = "control: gptq_v2 called gptq"
SCATTERED = "act-order"

pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / "made-from.txt").is_file(), reason="no environment; benchmarks/peers/make.sh gptqmodel makes it"
)


def written(model, folder, case):
    to, weight, shifted, _ = CASES[case]
    if shifted:
        with torch.no_grad():
            for name, own in model.named_parameters():
                if name.endswith("proj.weight"):
                    own[::3].abs_()
    kept = [fb.keep(r"model\.layers\.1\.self_attn\.o_proj")] if "kept" in case else []
    rules = [fb.keep(kind="head"), *kept, fb.Rule(kind="linear", weight=weight)]
    fb.quantize(model, fb.Recipe(rules), to=to).save(folder)


def change(folder, *, tensors=None, **config):
    """Change entries of a folder's `quantization_config`, and some of its tensors."""
    configuration = json.loads((folder / "config.json").read_text())
    configuration["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(configuration))
    if tensors:
        arrays = {name: np.array(array) for name, array in load_file(folder / "model.safetensors").items()}
        tensors(arrays)
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def scatter(arrays):
    random = np.random.default_rng(0)
    for name, index in arrays.items():
        if name.endswith(".g_idx"):
            random.shuffle(index)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_llama):
    """A folder for each case, and what GPTQModel makes of it."""
    root = tmp_path_factory.mktemp("folders")
    names = {case: root / f"case-{number}" for number, case in enumerate([*CASES, V2_AS_V1, SCATTERED])}
    for case in CASES:
        written(small_llama(hidden_size=128, intermediate_size=256), names[case], case)
    shutil.copytree(names["4 bits, asymmetric, zero points of 0"], names[V2_AS_V1])
    change(names[V2_AS_V1], checkpoint_format="gptq")
    shutil.copytree(names["4 bits, asymmetric, zero points of 0"], names[SCATTERED])
    change(names[SCATTERED], tensors=scatter, desc_act=True)
    np.save(root / "tokens.npy", TOKENS.numpy())
    python, home = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "extensions"
    # Nothing is compiled: neither by torch, which takes half a minute for each width, nor kernels in C++.
    settings = {"TORCHDYNAMO_DISABLE": "1", "GPTQMODEL_TORCH_EXTENSIONS_DIR": str(home), "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), str(PROGRAM), str(root / "tokens.npy"), *map(str, names.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return {case: (folder, np.load(folder.with_name(f"{folder.name}.npz"))) for case, folder in names.items()}


def weights(model):
    return {
        name: layer.qtensor.dequantize() for name, layer in model.named_modules() if hasattr(layer, "qtensor")
    }  # fmt: skip


def logits(model, *, halved):
    """Return the logits with weights in float32, or rounded to float16 as GPTQModel's kernels have them."""
    plain = LlamaForCausalLM(model.config).eval()
    rounded = {f"{name}.weight": weight.half().float() if halved else weight for name, weight in weights(model).items()}
    plain.load_state_dict(dict(model.named_parameters()) | rounded)
    with torch.no_grad():
        return plain(TOKENS).logits.numpy()


@pytest.mark.parametrize("case", [*CASES, SCATTERED])
def test_every_weight_is_ours_rounded_to_float16(folders, case):
    folder, theirs = folders[case]
    ours = weights(fb.load(folder).model)
    assert set(ours) == set(theirs.files) - {"logits"}
    assert len(ours) == (13 if "kept" in case else 14)
    assert all(np.array_equal(theirs[name], weight.half().numpy()) for name, weight in ours.items())
    if case in CASES and CASES[case][3]:
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert config["checkpoint_format"] == CASES[case][3]


@pytest.mark.parametrize("case", [case for case in [*CASES, SCATTERED] if "awq" not in case])
def test_logits_are_equal_to_the_bit_to_those_of_such_weights(folders, case):
    folder, theirs = folders[case]
    assert np.array_equal(theirs["logits"], logits(fb.load(folder).model, halved=True))


@pytest.mark.parametrize("case", [*CASES, SCATTERED])
def test_logits_lie_as_near_to_ours_as_float16_does(folders, case):
    """Two layers of a few roundings to 11 bits each; the kernel of AWQ rounds inputs and outputs too."""
    folder, theirs = folders[case]
    ours = logits(fb.load(folder).model, halved=False)
    assert np.abs(theirs["logits"] - ours).max() < 4 * 2**-11 * np.abs(ours).max()


def test_the_comparison_notices_zero_points_under_the_wrong_word(folders):
    """The negative control: gptq_v2 called gptq."""
    right, _ = folders["4 bits, asymmetric, zero points of 0"]
    _, theirs = folders[V2_AS_V1]
    ours = weights(fb.load(right).model)
    assert not any(np.array_equal(theirs[name], weight.half().numpy()) for name, weight in ours.items())
    expected = logits(fb.load(right).model, halved=False)
    assert np.abs(theirs["logits"] - expected).max() > 0.1 * np.abs(expected).max()
