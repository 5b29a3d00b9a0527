"""Bits under a budget, and sensitivities, on the command line."""

import json

import pytest

SELF = ("--samples", "2", "--calibration-length", "16")
MEASURE = ("--sequences", "2", "--length", "16")
THREE = ("--candidates", "int3 g32,int4 g32,int8 g32")


def test_a_model_is_written_under_a_budget_and_its_report_says_how(run, made, tmp_path):
    out = tmp_path / "out"
    code, printed, err = run(
        "quantize", made / "model", "-o", out, "--target-bits", "5.5", *THREE, "--keep", "model.embed_tokens|lm_head",
        "--rounds", "1", "--text", made / "text.txt", *MEASURE, *SELF,
    )  # fmt: skip
    assert code == 2
    assert "5.5 bits a weight cannot be: with the smallest candidate for every layer it is" in err
    code, printed, err = run(
        "quantize", made / "model", "-o", out, "--target-bits", "9.5", *THREE, "--keep", "model.embed_tokens|lm_head",
        "--rounds", "1", "--text", made / "text.txt", *MEASURE, *SELF,
    )  # fmt: skip
    assert code == 0, err
    data = json.loads((out / "report.json").read_text())
    found = data["allocation"]
    assert found["bits"] <= 9.5
    assert found["bytes"] == data["bytes_after"]
    assert found["measured"] == pytest.approx(data["after"]["kl_divergence"], rel=0.2)  # floats are rounded in the file
    assert {own["name"]: own["scheme"] for own in found["layers"]} == {
        own["name"]: own["becomes"] for own in data["layers"]
    }
    assert "for 9.5 bits a weight" in printed
    assert (tmp_path / "out.scores.json").is_file()


def test_a_divergence_on_the_command_line_holds(run, made, tmp_path):
    out = tmp_path / "out"
    code, printed, err = run(
        "quantize", made / "model", "-o", out, "--target-kl", "0.5", *THREE, "--keep", "model.embed_tokens|lm_head",
        "--text", made / "text.txt", *MEASURE, *SELF, "--json", "--cache", tmp_path / "scores",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(printed)["allocation"]["measured"] <= 0.5
    assert (tmp_path / "scores" / "scores.json").is_file()


def test_sensitivity_prints_each_layer_under_each_candidate(run, made, tmp_path):
    arguments = ("sensitivity", made / "model", *THREE, "--metric", "weight_error", "--metric", "fisher", *SELF)
    code, printed, err = run(*arguments)
    assert code == 0, err
    assert printed.count("model.layers.0.mlp.down_proj") == 2
    code, printed, _ = run(*arguments, "--json")
    scores = json.loads(printed)["scores"]
    assert code == 0
    assert len(scores) == 3 * len({own["layer"] for own in scores})
    assert all(own["fisher"] >= 0 for own in scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-bits", "4", "--target-size", "1MB"), "--target-bits and --target-size exclude each other"),
        (("--candidates", "int4 g32"), "--candidates is about a search for bits"),
        (("--target-bits", "4", "--recipe", "w4a16"), "--recipe and a budget (--target-bits, ...) exclude each other"),
        (("--target-bits", "4", "--dry-run"), "--dry-run and a budget"),
        (("--target-size", "much"), "budget 'much' is not understood"),
        (("--target-latency", "3MB"), "--target-latency '3MB' is no latency"),
        (("--target-kl", "0"), "is no positive number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, made, tmp_path, arguments, message):
    code, _, err = run("quantize", made / "model", "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert message in err
