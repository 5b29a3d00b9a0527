"""The commands on a model small enough to be made here: what they print, what they write, how they leave."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from fewbit.cli.application import main

PLAN = """\
layers     become    by    count    before    after
embedding  float               1   41.0 kB  41.0 kB
linear     int4 g32  gptq      7   61.4 kB  17.4 kB
head       float               1    0.0 kB   0.0 kB
the rest   float                    0.4 kB   0.4 kB
in all                         9  102.8 kB  58.7 kB"""
MEASURE = ("--sequences", "2", "--length", "16")


@pytest.fixture(scope="module")
def quantized(made):
    """What `fewbit quantize` wrote, with its report."""
    with pytest.raises(SystemExit) as left:
        main(
            ["quantize", str(made / "model"), "-o", str(made / "w4"), "--text", str(made / "text.txt"), *MEASURE, "-q"]
        )
    assert left.value.code == 0
    return made / "w4"


def one_object(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def names(path):
    return sorted(entry.name for entry in path.iterdir())


# quantize


def test_quantize_prints_what_it_cost_and_where_it_wrote(run, made, tmp_path):
    out = tmp_path / "out"
    code, printed, err = run("quantize", made / "model", "-o", out, "--text", made / "text.txt", *MEASURE)
    assert code == 0
    assert "Traceback" not in err
    before, after = printed.split("\n\n")
    assert before.split("\nadapted: ")[0] == PLAN
    assert before.split("\nadapted: ")[1].startswith("group size 128 -> 32 for 7 layers: ")
    assert after.startswith("model                  ")
    assert f"measured on            30 predictions, {made / 'text.txt'}\n" in printed
    assert printed.endswith(f"written                {out}\n")
    assert {"config.json", "model.safetensors", "report.html", "report.json", "tokenizer.json"} <= set(names(out))
    assert names(tmp_path) == ["out"]


def test_quiet_prints_nothing(run, made, tmp_path):
    assert run("quantize", made / "model", "-o", tmp_path / "out", "--text", "none", "-q") == (0, "", "")
    assert (tmp_path / "out" / "config.json").is_file()


def test_json_prints_one_object_and_that_is_the_report(run, made, tmp_path):
    out = tmp_path / "out"
    code, printed, err = run("quantize", made / "model", "-o", out, "--text", made / "text.txt", *MEASURE, "--json")
    assert (code, err) == (0, "")
    data = one_object(printed)
    assert data.pop("output") == str(out)
    written = one_object((out / "report.json").read_text())
    assert written.pop("files").keys() == set(names(out))  # what was written is known when it has been
    assert data == written
    assert (data["schema_version"], data["recipe"], data["after"]["predictions"]) == (2, "w4a16", 30)


def test_the_report_holds_the_command_that_repeats_the_run(run, made, tmp_path):
    arguments = ["quantize", str(made / "model"), "-o", str(tmp_path / "out"), "--text", "none", "--json"]
    _, printed, _ = run(*arguments)
    assert one_object(printed)["command"] == " ".join(["fewbit", *arguments])


def test_without_text_nothing_is_measured(run, made, tmp_path):
    _, printed, _ = run("quantize", made / "model", "-o", tmp_path / "out", "--text", "none", "--json")
    data = one_object(printed)
    assert (data["before"], data["after"], data["text"], data["output_sqnr"]) == (None, None, None, None)
    assert all(layer["output_sqnr"] is None for layer in data["layers"])


def test_weight_and_keep_make_a_recipe(run, made, tmp_path):
    options = ("--weight", "int8", "--keep", ".*down_proj", "--keep", ".*layers.*q_proj", "--text", "none", "--json")
    code, printed, _ = run("quantize", made / "model", "-o", tmp_path / "out", *options)
    becomes = {layer["name"].rpartition(".")[2]: layer["becomes"] for layer in one_object(printed)["layers"]}
    assert code == 0
    assert becomes == {
        "embed_tokens": "float", "q_proj": "float", "k_proj": "int8 channel", "v_proj": "int8 channel",
        "o_proj": "int8 channel", "gate_proj": "int8 channel", "up_proj": "int8 channel", "down_proj": "float",
        "lm_head": "float",
    }  # fmt: skip


@pytest.mark.parametrize("given", ["int8", "int8 static"])
def test_input_rounds_the_inputs_too_and_the_folder_says_so(run, made, tmp_path, given):
    out = tmp_path / "out"
    text = ("--text", made / "text.txt", "--calibration", made / "text.txt", "--calibration-length", "16")
    command = ("quantize", made / "model", "-o", out, "--weight", "int8", "--input", given, *text, *MEASURE)
    code, printed, err = run(*command)
    assert code == 0, err
    assert f"recipe                 int8, input {given}" in printed
    group = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert group["input_activations"]["num_bits"] == 8
    assert group["input_activations"]["dynamic"] == (given == "int8")
    code, printed, _ = run("evaluate", out, "--reference", made / "model", "--text", made / "text.txt", *MEASURE)
    assert code == 0
    for name in ("prefill", "decode"):
        assert re.search(
            rf"^{name} +[\d.]+ tokens a second, [\d.]+ times the reference's [\d.]+$", printed, re.MULTILINE
        )


def test_the_model_writes_besides_a_text_and_the_folder_says_so(run, made, tmp_path):
    text = ("--text", "none", "--calibration", made / "text.txt", "--calibration-length", "16", "--samples", "2")
    command = ("quantize", made / "model", "-o", tmp_path / "out", "--weight", "int4 g16", "--algorithm", "gptq", *text)
    code, _, err = run(*command, "--written", "2")
    assert code == 0, err
    said = "text.txt: 2 x 16 tokens, and 2 x 16 that the model wrote"
    assert json.loads((tmp_path / "out/report.json").read_text())["calibration"] == said


def test_schemes_that_run_faster_here_are_hinted_at_before_the_run(run, made, monkeypatch):
    monkeypatch.setattr("fewbit.kernels.fbgemm.vnni", lambda: False)
    code, printed, _ = run("quantize", made / "model", "--weight", "int8", "--input", "int8", "--dry-run")
    assert code == 0
    hint = next(line for line in printed.splitlines() if line.startswith("hint: "))
    assert hint.endswith("which this processor lacks; weight = 'int7 channel' does not")
    assert "and 6 more: dequantize, not faster than float" in hint
    _, printed, _ = run("quantize", made / "model", "--weight", "int7", "--input", "int8", "--dry-run")
    assert "hint" not in printed


def test_keep_beside_a_preset_still_adapts(run, made):
    code, printed, _ = run("quantize", made / "model", "--dry-run", "--keep", ".*down_proj", "--json")
    data = one_object(printed)
    assert (code, data["problems"]) == (0, [])
    assert data["adaptations"][0].startswith("group size 128 -> 64 for 6 layers")  # 96 wide down_proj asked for 32


def test_dry_run_prints_the_plan_and_writes_nothing(run, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, _ = run("quantize", made / "model", "-o", "out", "--dry-run")
    assert code == 0
    assert "model.layers.0.mlp.down_proj" in printed
    assert "whole model" in printed
    assert names(tmp_path) == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_dry_run_with_problems_prints_them_and_leaves_with_two(run, made, form):
    options = ("--dry-run", "--weight", "int4 g128", *(["--json"] if form == "json" else []))
    code, printed, err = run("quantize", made / "model", *options)
    problem = "in_features 64 is not a multiple of group size 128; use g64"
    assert code == 2
    assert problem in (one_object(printed)["problems"][0] if form == "json" else printed)
    assert err.startswith("fewbit: ")
    assert "Traceback" not in err


def test_problems_are_found_before_the_weights_are_read(run, made, tmp_path, monkeypatch):
    def read(source):
        raise AssertionError("the weights were read")

    monkeypatch.setattr("fewbit.sources.huggingface.TransformersModel.load", read)
    code, _, err = run("quantize", made / "model", "-o", tmp_path / "out", "--weight", "int4 g128")
    assert code == 2
    assert "is not a multiple of group size 128" in err
    assert names(tmp_path) == []


def test_an_output_that_exists_is_refused_at_once_and_replaced_when_asked(run, made, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    code, _, err = run("quantize", made / "nowhere", "-o", out)
    assert (code, err) == (2, f"fewbit: {out} exists; choose another name or pass overwrite (--overwrite)\n")
    code, _, _ = run("quantize", made / "model", "-o", out, "--text", "none", "--overwrite")
    assert code == 0
    assert (out / "model.safetensors").is_file()


def test_overwrite_refuses_a_folder_that_is_no_model_before_the_weights_are_read(run, made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    code, _, err = run("quantize", tmp_path / "model", "-o", tmp_path / "thesis", "--overwrite", "--text", "none")
    assert code == 2
    assert names(tmp_path / "thesis") == ["thesis.tex"]
    assert "is not a model folder and is not overwritten" in err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--to", "compressed-tensor"), "unknown checkpoint format 'compressed-tensor'; did you mean 'compressed-te"),
        (("--dtype", "half"), "dtype 'half' is none of auto, float32, float16, bfloat16"),
        (("--length", "400"), "the text has 46 tokens, fewer than one sequence of 400; give more text"),
    ],
)
def test_an_option_that_cannot_be_heeded_leaves_with_two_and_writes_nothing(run, made, tmp_path, option, message):
    code, printed, err = run("quantize", made / "model", "-o", tmp_path / "o", "--text", made / "text.txt", *option)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert "written" not in printed
    assert names(tmp_path) == []


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
@pytest.mark.parametrize("command", ["quantize", "evaluate"])
def test_a_device_that_is_not_there_leaves_with_two(run, made, tmp_path, command, device):
    options = {"quantize": ("-o", tmp_path / "out"), "evaluate": ()}[command]
    measure = ("--text", made / "text.txt", *MEASURE)
    code, _, err = run(command, made / "model", *options, *measure, "--device", device)
    assert code == 2
    assert device in err
    assert "Traceback" not in err
    assert names(tmp_path) == []


# inspect


def test_inspect_of_a_float_model_shows_types_bytes_and_range_as_stored(run, made):
    code, printed, _ = run("inspect", made / "model", "--json")
    data = one_object(printed)
    assert code == 0
    (row,) = [row for row in data["tensors"] if row["name"] == "model.layers.0.mlp.up_proj.weight"]
    weight = load_file(made / "model" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
    assert (row["shape"], row["lowest"], row["highest"]) == ([96, 64], float(weight.min()), float(weight.max()))
    assert (row["form"], row["nbytes"]) == ("bfloat16", 96 * 64 * 2)


def test_inspect_counts_a_tied_weight_once(run, made):
    data = one_object(run("inspect", made / "model", "--match", "embed_tokens|lm_head", "--json")[1])
    assert [row["name"] for row in data["tensors"]] == ["model.embed_tokens.weight"]


def test_inspect_shows_what_quantize_wrote(run, quantized):
    code, printed, _ = run("inspect", quantized)
    data = one_object(run("inspect", quantized, "--json")[1])
    assert code == 0
    assert printed.splitlines()[-1] == f"11 tensors, 7 quantized, 4 float; {data['bytes']:,} bytes"
    report = one_object((quantized / "report.json").read_text())
    assert data["bytes"] == report["bytes_after"]
    forms = {row["name"]: (row["form"], row["nbytes"]) for row in data["tensors"]}
    for layer in report["layers"]:
        if layer["becomes"] != "float":
            assert forms[layer["name"]] == (layer["becomes"], layer["bytes_after"])


def test_inspect_shows_only_what_matches(run, quantized):
    data = one_object(run("inspect", quantized, "--match", "mlp", "--json")[1])
    assert len(data["tensors"]) == 3


@pytest.mark.parametrize("option", ["--json", "--match=norm"])
def test_inspect_of_a_model_with_nan_shows_it(run, made, tmp_path, option):
    shutil.copytree(made / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    code, printed, _ = run("inspect", tmp_path / "model", option)
    assert code == 0
    assert "nan" in (json.dumps(one_object(printed)) if option == "--json" else printed)


# evaluate


def test_evaluate_alone_prints_a_perplexity(run, made):
    code, printed, _ = run("evaluate", made / "model", "--text", made / "text.txt", *MEASURE)
    assert code == 0
    assert printed.startswith("perplexity ")
    assert "KL" not in printed


def test_evaluate_of_what_quantize_wrote_agrees_with_its_report(run, made, quantized):
    options = ("--reference", made / "model", "--text", made / "text.txt", *MEASURE, "--json")
    code, printed, err = run("evaluate", quantized, *options)
    data = one_object(printed)
    report = one_object((quantized / "report.json").read_text())
    assert (code, err) == (0, "")
    for key in ("predictions", "perplexity", "kl_divergence", "top1_agreement"):
        assert data["quality"][key] == report["after"][key], key
    assert data["reference_quality"]["perplexity"] == report["before"]["perplexity"]
    assert data["quality"]["kl_divergence"] > 0


def test_evaluate_of_a_model_against_itself_finds_no_difference(run, made):
    options = ("--reference", made / "model", "--text", made / "text.txt", *MEASURE, "--json")
    quality = one_object(run("evaluate", made / "model", *options)[1])["quality"]
    assert (quality["kl_divergence"], quality["top1_agreement"]) == (0.0, 1.0)


def test_evaluate_says_what_a_model_without_tokenizer_lacks(run, made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    for file in (tmp_path / "model").glob("token*"):
        file.unlink()
    code, _, err = run("evaluate", tmp_path / "model", "--text", made / "text.txt", *MEASURE)
    assert code == 2
    assert "tokenizer" in err
    assert "Traceback" not in err


def test_a_folder_without_a_tokenizer_is_quantized_and_not_measured(run, made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    code, printed, _ = run("quantize", tmp_path / "bare", "-o", tmp_path / "out", "--recipe", "w8a16")
    assert code == 0
    assert "perplexity" not in printed
    code, _, err = run("quantize", tmp_path / "bare", "-o", tmp_path / "two", "--text", made / "text.txt")
    assert code == 2
    assert "the model has no tokenizer for a text; put its files into the folder" in err
    code, _, err = run("evaluate", tmp_path / "bare")
    assert code == 2
    assert "the model has no tokenizer for a text" in err


@pytest.mark.slow
def test_inspect_of_a_gguf_file_shows_the_types_that_it_holds(run):
    code, printed, _ = run("inspect", "smollm2", "--match", r"layers\.0\.")
    rows = {line.split()[0]: line.split()[2] for line in printed.splitlines()[1:-1]}
    assert code == 0
    assert rows["model.layers.0.mlp.up_proj.weight"] == "q4_1"
    assert rows["model.layers.0.input_layernorm.weight"] == "float32"
    assert printed.splitlines()[-1].startswith("9 tensors, 7 quantized, 2 float; ")
