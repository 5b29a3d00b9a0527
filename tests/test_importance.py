"""Importance matrices in the place of calibration: gathered, written, and what a search makes of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import fewbit as fb
from fewbit.algorithms.importance import importance_of_squares
from fewbit.checkpoints.gguf.importance_matrix import read_importance_matrix
from fewbit.errors import CalibrationError, CheckpointError, PlanError, RecipeError
from fewbit.schemes.gguf import GGUF_FORMATS

BATCHES = [torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
DOWN = "model.layers.0.mlp.down_proj"
ENTRIES = {f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up",
                                               "ffn_down")}  # fmt: skip


@pytest.fixture(scope="module")
def model_of(language_model):
    return lambda: language_model("llama", **SIZES)


@pytest.fixture(scope="module")
def matrix(model_of):
    """A matrix of strongly unequal channels, so that weights matter: that of the model times a factor a channel."""
    found = fb.importance_matrix(model_of(), calibration=BATCHES)
    factors = np.exp(2 * np.random.default_rng(0).normal(size=512)).astype(np.float32)
    return replace(found, sums={name: own * factors[: own.shape[1]] for name, own in found.sums.items()})


@pytest.fixture(scope="module")
def path(matrix, tmp_path_factory):
    return matrix.save(tmp_path_factory.mktemp("matrix") / "i.gguf")


def only(matrix, *names):
    return replace(matrix, sums={name: matrix.sums[name] for name in names})


def linear(weight, **settings):
    return fb.Recipe([fb.Rule(kind="linear", weight=weight, **settings)])


def qtensor(result, name=DOWN):
    return result.model.get_submodule(name).qtensor


def test_the_gathered_matrix_holds_sums_of_squares_by_the_names_of_gguf(model_of):
    model = model_of()
    seen = []
    hook = model.get_submodule(DOWN).register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        for batch in BATCHES:
            model(batch)
    hook.remove()
    found = fb.importance_matrix(model, calibration=BATCHES)
    assert set(found.sums) == {*ENTRIES, "output.weight"}
    rows = torch.cat(seen).reshape(-1, 512).double()
    # Activations are those of another order of float32 sums.
    np.testing.assert_allclose(found.sums["blk.0.ffn_down.weight"][0], (rows**2).sum(0), rtol=1e-5)
    assert found.counts["blk.0.ffn_down.weight"].tolist() == [120.0]
    assert (found.chunks, found.chunk_size, found.datasets) == (3, 40, ("the given batches",))
    assert not hasattr(model.get_submodule(DOWN), "qtensor")


def test_a_head_that_is_the_embedding_is_no_entry(language_model):
    found = fb.importance_matrix(language_model("llama tied"), calibration=BATCHES)
    assert "output.weight" not in found.sums
    assert "token_embd.weight" not in found.sums


@pytest.mark.parametrize("weight", [*GGUF_FORMATS, "mxfp4 mse", "int4 g64", "nf4 g64", "int8 channel"])
def test_a_search_by_the_matrix_leaves_less_of_what_the_matrix_counts(model_of, matrix, path, weight):
    """The direction: less weighted error than without, and more of the plain one."""
    original = model_of().get_submodule(DOWN).weight.detach()
    counts = importance_of_squares(matrix.mean_squares("blk.0.ffn_down.weight")[0], original)
    blind = qtensor(fb.quantize(model_of(), linear(f"{weight} mse" if weight[:3] in ("int", "nf4") else weight)))
    own = qtensor(fb.quantize(model_of(), linear(weight), importance=path))
    errors = [(found.dequantize() - original) ** 2 for found in (blind, own)]
    assert float((errors[1] * counts).sum()) < float((errors[0] * counts).sum())
    assert float(errors[1].sum()) > float(errors[0].sum())


def test_the_codes_are_those_of_calibration_on_the_same_data(model_of, tmp_path):
    """Of a first layer, whose inputs no quantized layer has moved; the file rounds sums to float32."""
    file = fb.importance_matrix(model_of(), calibration=BATCHES).save(tmp_path / "i.gguf")
    name = "model.layers.0.self_attn.q_proj"
    algorithm = fb.Nearest(weighted=True, relative=False)
    calibrated = fb.quantize(model_of(), linear("q4_k", algorithm=algorithm), calibration=BATCHES)
    given = fb.quantize(model_of(), linear("q4_k"), importance=file)
    same = qtensor(calibrated, name).codes == qtensor(given, name).codes
    assert float(same.float().mean()) > 0.999
    assert given.plan.importance == "i.gguf"


def test_gptq_gives_way_and_plan_and_report_say_so(model_of, path):
    made = fb.plan(model_of(), "q4_k_m", to="gguf", importance=path)
    said = (
        "i.gguf: searches are weighted by it, and weights rounded to nearest in the place of gptq, which needs second "
        "moments as a whole"
    )
    assert said in made.adaptations
    assert {row.algorithm.name for row in made.rows} == {"nearest"}
    result = fb.quantize(model_of(), "q4_k_m", to="gguf", importance=path)
    assert said in result.report.adaptations
    assert result.report.calibration == "importance matrix i.gguf of the given batches, 3 x 40 tokens"
    assert {layer.algorithm for layer in result.report.layers} == {"nearest"}
    assert not [layer for layer in result.report.layers if layer.remarks]


def test_the_file_of_a_mixture_decodes_to_the_weighted_model(model_of, path, tmp_path):
    result = fb.quantize(model_of(), "q4_k_m", to="gguf", importance=path)
    result.save(tmp_path / "m.gguf")
    loaded = fb.load(tmp_path / "m.gguf")
    for name in (DOWN, "lm_head"):
        assert torch.equal(qtensor(loaded, name).dequantize(), qtensor(result, name).dequantize())


def test_a_layer_without_an_entry_is_named_and_searched_without_data(model_of, matrix, tmp_path):
    file = only(matrix, *(ENTRIES - {"blk.0.ffn_down.weight"})).save(tmp_path / "part.gguf")
    made = fb.plan(model_of(), linear("q4_k"), importance=file)
    assert made.adaptations[-1] == f"{DOWN}: part.gguf has no entry, searched without data"
    row = next(row for row in made.rows if row.layer.name == DOWN)
    assert "not weighted: part.gguf has no blk.0.ffn_down.weight" in row.notes
    result = fb.quantize(model_of(), linear("q4_k"), importance=file)
    fallen = result.report.in_state("fell back")
    assert [(layer.name, layer.remarks) for layer in fallen] == [
        (DOWN, ("nothing is known of its input: not weighted",))
    ]
    assert f"{DOWN}: nothing is known of its input: not weighted" in result.report.remarks
    blind = fb.quantize(model_of(), linear("q4_k"))
    assert torch.equal(qtensor(result).dequantize(), qtensor(blind).dequantize())


def test_an_entry_that_counted_nothing_weighs_nothing_and_is_reported(model_of, matrix, tmp_path):
    file = replace(matrix, counts={name: own * 0 for name, own in matrix.counts.items()}).save(tmp_path / "0.gguf")
    result = fb.quantize(model_of(), linear("q4_k"), importance=file)
    assert {layer.remarks for layer in result.report.quantized} == {("no calibration input reached it: not weighted",)}


def test_a_matrix_of_other_widths_is_a_problem_that_names_them(language_model, path):
    other = language_model("llama", hidden_size=256, intermediate_size=768, num_hidden_layers=1)
    made = fb.plan(other, linear("q4_k"), importance=path)
    assert made.problems == (
        f"{DOWN}: blk.0.ffn_down.weight in i.gguf has 1 x 512 numbers, and the layer 768 inputs; gather the matrix on "
        "this model",
    )
    with pytest.raises(PlanError, match="has 1 x 512 numbers"):
        fb.quantize(other, linear("q4_k"), importance=path)


def test_a_matrix_of_several_experts_is_a_problem(model_of, matrix, tmp_path):
    name = "blk.0.ffn_down.weight"
    twice = replace(
        matrix,
        sums={**matrix.sums, name: matrix.sums[name].repeat(2, 0)},
        counts={**matrix.counts, name: matrix.counts[name].repeat(2)},
    )
    made = fb.plan(model_of(), linear("q4_k"), importance=twice.save(tmp_path / "i.gguf"))
    assert "has 2 x 512 numbers" in made.problems[0]


def test_a_matrix_of_another_model_is_a_problem(model_of, matrix, tmp_path):
    sums = {name.replace("blk.0", "blk.7"): own for name, own in matrix.sums.items() if name in ENTRIES}
    counts = {name.replace("blk.0", "blk.7"): own for name, own in matrix.counts.items() if name in ENTRIES}
    file = replace(matrix, sums=sums, counts=counts).save(tmp_path / "i.gguf")
    made = fb.plan(model_of(), linear("q4_k"), importance=file)
    assert "weighs no layer of this recipe" in made.problems[0]
    assert "is it of another model?" in made.problems[0]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (linear("int8", input="int8 static"), "static ranges, ranges by outputs and corrections need calibration data"),
        (fb.Recipe(linear("int4 g64").rules, transforms=["smoothquant"]), "smoothquant changes what goes into layers"),
        (fb.Recipe(linear("int4 g64").rules, transforms=["rotation"]), "rotation changes what goes into layers"),
    ],
)
def test_what_needs_more_than_a_matrix_is_a_problem(model_of, path, recipe, message):
    assert any(message in problem for problem in fb.plan(model_of(), recipe, importance=path).problems)


def test_a_tied_head_stays_one_with_the_embedding(language_model, tmp_path):
    model = language_model("llama tied", **SIZES)
    file = fb.importance_matrix(model, calibration=BATCHES).save(tmp_path / "i.gguf")
    result = fb.quantize(model, "q4_k_m", to="gguf", importance=file)
    head = next(row for row in result.plan.rows if row.layer.kind == "head")
    assert head.shared == "model.embed_tokens"
    assert "not weighted: the same codes are an embedding" in head.notes
    result.save(tmp_path / "m.gguf")


def test_what_searches_nothing_stays_as_it_is(model_of, path):
    recipe = fb.Recipe([fb.Rule(DOWN, weight="int8 channel percentile"), *linear("q4_k").rules])
    row = next(row for row in fb.plan(model_of(), recipe, importance=path).rows if row.layer.name == DOWN)
    assert (row.algorithm, row.notes) == (fb.Nearest(), ("no search to weigh",))
    hqq = next(row for row in fb.plan(model_of(), linear("int4 g64", algorithm="hqq"), importance=path).rows
               if row.layer.name == DOWN)  # fmt: skip
    assert "hqq takes no importance matrix" in hqq.notes


def test_data_and_a_matrix_exclude_each_other(model_of, path):
    with pytest.raises(CalibrationError, match="in the place of calibration data; give one of the two"):
        fb.quantize(model_of(), linear("q4_k"), calibration=BATCHES, importance=path)


def test_a_model_that_gguf_has_no_names_for_is_refused(path):
    with pytest.raises(CheckpointError, match="call layers by their names in GGUF, and a module without"):
        fb.plan(torch.nn.Sequential(torch.nn.Linear(64, 8)), linear("int8"), importance=path)


def test_a_damaged_file_is_refused_before_the_model_is_touched(model_of, path, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-400])
    model = model_of()
    with pytest.raises(CheckpointError, match=r"cut\.gguf"):
        fb.quantize(model, linear("q4_k"), importance=cut)
    assert isinstance(model.get_submodule(DOWN), torch.nn.Linear)
    with pytest.raises(CheckpointError, match="No such file"):
        fb.quantize(model, linear("q4_k"), importance=tmp_path / "none.gguf")


def test_activations_that_are_not_finite_are_named(model_of):
    model = model_of()
    model.model.layers[0].mlp.up_proj.weight.data.fill_(1e30)
    model.model.layers[0].mlp.gate_proj.weight.data.fill_(1e30)
    with pytest.raises(fb.FewbitError, match=r"down_proj: .*NaN or infinity"):
        fb.importance_matrix(model, calibration=BATCHES)


def test_relative_says_how_to_weigh_and_nothing_else():
    with pytest.raises(RecipeError, match="add weighted = true"):
        fb.Nearest(relative=False)


@pytest.fixture
def folder(model_of, tmp_path):
    model_of().save_pretrained(tmp_path / "float")
    return tmp_path / "float"


def run(capsys, *words):
    from fewbit.cli.application import main

    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code, *capsys.readouterr()


def test_the_command_line_gathers_a_matrix_and_quantizes_by_it(folder, tmp_path, capsys):
    file, out = tmp_path / "i.gguf", tmp_path / "m.gguf"
    options = ["--samples", 2, "--calibration-length", 16, "--json"]
    code, said, _ = run(capsys, "imatrix", folder, "-o", file, *options)
    assert code == 0
    assert json.loads(said) == {"output": str(file), "entries": 8, "chunks": 2, "chunk_size": 16}
    assert set(read_importance_matrix(file).sums) == {*ENTRIES, "output.weight"}
    words = ["quantize", folder, "--recipe", "q4_k_m", "-o", out, "--imatrix", file, "--text", "none"]
    code, said, _ = run(capsys, *words)
    assert code == 0
    assert "i.gguf: searches are weighted by it" in said
    assert "calibrated on          importance matrix i.gguf of text that the model wrote, 2 x 16 tokens" in said
    code, said, _ = run(capsys, *words, "--dry-run")
    assert code == 0
    assert "in the place of gptq" in said


def test_the_command_line_refuses_what_makes_no_sense(folder, path, tmp_path, capsys):
    words = ["quantize", folder, "-o", tmp_path / "m.gguf", "--imatrix", path, "--calibration", "text.txt"]
    assert "exclude each other" in run(capsys, *words)[2]
    code, _, said = run(capsys, "imatrix", folder, "-o", tmp_path / "matrix.txt")
    assert (code, "is a .gguf file, or a .dat in the older form" in said) == (2, True)
    code, _, said = run(capsys, "imatrix", folder, "-o", path)
    assert (code, "exists; choose another name" in said) == (2, True)
