"""llama-quantize, in the build of ik_llama.cpp, rounds by an importance matrix that fewbit gathered.

It takes the older form only; the form in GGUF is read by the gguf package and by libgguf where that form is tested.
"""

import subprocess

import gguf
import numpy as np
import pytest
import torch

import fewbit as fb

ik_llama_cpp = pytest.importorskip("ik_llama_cpp", reason="needs ik-llama-cpp-python, Linux on x86-64")
NAME = "blk.0.ffn_down.weight"


def rounded(source, matrix):
    target = source.with_name("q4_k.gguf")
    words = ["--imatrix", matrix] if matrix else []
    done = subprocess.run(
        [ik_llama_cpp.find_quantize_bin(), *words, "--pure", source, target, "Q4_K_S", "1"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    own = next(tensor for tensor in gguf.GGUFReader(target).tensors if tensor.name == NAME)
    assert own.tensor_type.name == "Q4_K"
    return gguf.dequantize(own.data, own.tensor_type), done.stdout + done.stderr


def test_it_reads_every_entry_and_leaves_less_of_what_the_matrix_counts(tmp_path, language_model):
    model = language_model("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    batches = [torch.arange(start, start + 40)[None] for start in (0, 100, 200)]
    matrix = fb.importance_matrix(model, calibration=batches)
    weight = model.model.layers[0].mlp.down_proj.weight.detach().numpy().copy()
    recipe = fb.Recipe([fb.Rule(kind=kind, weight="fp16") for kind in ("linear", "embedding", "head")])
    fb.quantize(model, recipe, to="gguf").save(tmp_path / "float.gguf")
    blind, _ = rounded(tmp_path / "float.gguf", None)
    weighted, said = rounded(tmp_path / "float.gguf", matrix.save(tmp_path / "i.dat"))
    assert "loaded 8 importance matrix entries" in said
    assert "computed on 3 chunks" in said
    counts = matrix.mean_squares(NAME)[0]
    errors = [((found - weight) ** 2 * counts).sum() for found in (blind, weighted)]
    assert errors[1] < 0.95 * errors[0]  # 0.85 was seen; without effect it were 1
    assert not np.array_equal(blind, weighted)
