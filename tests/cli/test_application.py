"""The command line without a model: usage and errors."""

import sys

import pytest

from fewbit.cli.application import main


def test_the_version_is_printed(run):
    import fewbit

    assert run("--version") == (0, f"fewbit {fewbit.__version__}\n", "")


@pytest.mark.parametrize("command", [[], ["quantize"], ["evaluate"], ["inspect"], ["demo"]])
def test_help_is_printed_and_leaves_with_zero(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: ")
    assert all(name in out for name in (["quantize", "evaluate", "inspect", "demo"] if not command else ["--json"]))


def test_usage_calls_the_program_fewbit_however_it_was_started(run):
    assert run("quantize", "--help")[1].startswith("Usage: fewbit quantize [OPTIONS] ")


@pytest.mark.parametrize("command", [["quantize"], ["evaluate"], ["inspect"]])
def test_a_command_without_its_model_shows_help_and_leaves_with_two(run, command):
    code, out, err = run(*command)
    assert code == 2
    assert (out + err).startswith("Usage: ")
    assert f" {command[0]} [OPTIONS] " in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantise", "m"], "No such command 'quantise'. Did you mean 'quantize'?"),
        (["quantize", "m", "--recipie", "w4a16"], "--recipie"),
        (["quantize", "m", "--sequences", "0"], "--sequences"),
        (["quantize", "m", "--length", "1"], "--length"),
        (["quantize", "m", "--seed", "x"], "--seed"),
        (["quantize", "m", "n"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_leaves_with_two_and_names_what_is_wrong(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


# One line on standard error, without traceback: `fewbit: what is wrong and what to do`.
MISTAKES = {
    "no model": (["quantize", "nowhere", "-o", "out"], "no model 'nowhere': no such folder or file; the demo model"),
    "no model to inspect": (["inspect", "nowhere"], "no model 'nowhere'"),
    "no model to evaluate": (["evaluate", "nowhere"], "no model 'nowhere'"),
    "no output": (["quantize", "nowhere"], "nowhere to write: give -o OUT, or --dry-run"),
    "preset": (["quantize", "m", "-o", "out", "--recipe", "w4a61"], "unknown preset 'w4a61'; did you mean 'w4a16'?"),
    "recipe file": (["quantize", "m", "-o", "out", "--recipe", "no.toml"], "cannot read recipe no.toml"),
    "scheme": (["quantize", "m", "-o", "out", "--weight", "int44"], "unknown number format 'int44'"),
    "recipe and scheme": (
        ["quantize", "m", "-o", "out", "--recipe", "w4a16", "--weight", "int8"], "--recipe and --weight"),
    "algorithm alone": (["quantize", "m", "-o", "out", "--algorithm", "nearest"], "--algorithm needs --weight"),
    "input alone": (["quantize", "m", "-o", "out", "--input", "int8"], "--input needs --weight"),
    "input and recipe": (
        ["quantize", "m", "-o", "out", "--recipe", "w8a8", "--input", "int8"], "--recipe and --weight (or --input"),
    "algorithm": (
        ["quantize", "m", "-o", "out", "--weight", "int8", "--algorithm", "neerest"], "did you mean 'nearest'?"),
    "later algorithm": (
        ["quantize", "m", "-o", "out", "--weight", "int4", "--algorithm", "awq"],
        "algorithm 'awq' is not in this version"),
    "pattern": (["quantize", "m", "-o", "out", "--keep", "("], "match = '(' is not a regular expression"),
    "pattern to inspect": (["inspect", "m", "--match", "("], "--match '(' is not a regular expression"),
    "text": (["evaluate", "m", "--text", "no.txt"], "cannot read text no.txt: No such file"),
    "ONNX into a folder": (
        ["quantize", "m.onnx", "-o", "out"],
        "m.onnx becomes an ONNX file: end the output in .onnx, not out",
    ),
    "a runtime and a folder": (
        ["quantize", "m", "-o", "out", "--runtime", "ort-cpu"],
        "ort-cpu writes a file that ends in .onnx, and the output is 'out'",
    ),
    "ONNX to evaluate": (["evaluate", "m.onnx"], "m.onnx is measured on samples; give --data: an .npz"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_leaves_with_two_and_one_line_that_helps(run, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fewbit: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_recipe_file_is_answered_with_its_place(run, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[rules]]\nkind = "linear"\nweight = "int44"\n')
    code, _, err = run("quantize", "m", "-o", tmp_path / "out", "--recipe", path)
    assert code == 2
    assert err.endswith("(in rule 1 of recipe mine.toml)\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--workers", "2"], "--workers is for workers; add --executor ray, or leave it out"),
        (["--address", "auto"], "--address is for workers; add --executor ray, or leave it out"),
        (["--executor", "rey"], "unknown executor 'rey'; did you mean 'ray'? known: in-process, ray"),
        (["--executor", "ray", "--address", "here"], "'here' is no address of a Ray cluster; give HOST:PORT, or auto"),
    ],
)
def test_an_executor_that_cannot_be_is_refused_before_anything_is_read(run, monkeypatch, tmp_path, given, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    code, out, err = run("quantize", "nowhere", "-o", tmp_path / "out", *given)
    assert (code, out, err) == (2, "", f"fewbit: {message}\n")


@pytest.mark.parametrize("arguments", [["--debug", "inspect", "nowhere"], ["inspect", "nowhere", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert "fewbit.errors.SourceError: no model 'nowhere'" in err


def test_quiet_and_json_do_not_hide_errors(run):
    for option in ("-q", "--json"):
        code, out, err = run("inspect", "nowhere", option)
        assert (code, out) == (2, "")
        assert err.startswith("fewbit: no model 'nowhere'")


def test_an_interrupt_leaves_with_130_and_one_line(run, monkeypatch):
    def interrupted(model):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewbit.sources.open_source", interrupted)
    assert run("inspect", "model") == (130, "", "fewbit: interrupted; no half model is left behind\n")


def test_without_arguments_the_command_line_of_the_process_counts(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fewbit", "inspect", "nowhere"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "nowhere" in capsys.readouterr().err
