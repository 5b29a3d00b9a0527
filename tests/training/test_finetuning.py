"""Fine-tuning brings a quantized language model nearer to its float self, by the library and from the command line."""

import json

import pytest
import torch

import fewbit as fb
from fewbit.cli.application import main
from fewbit.errors import PlanError, RecipeError
from fewbit.training.finetuning import Finetuning, Texts, finetune


def tokens(first, count):
    return [torch.randint(0, 100, (1, 24), generator=torch.Generator().manual_seed(first + i)) for i in range(count)]


def tuned(model, **options):
    texts = Texts(training=fb.Calibration(data=tokens(0, 16)), evaluation=tokens(0, 4))
    return finetune(model, "w2a16", texts, options=Finetuning(**options))


def test_training_lowers_the_divergence_on_its_text_that_the_algorithms_of_the_recipe_leave(small_llama):
    def sharp():
        return small_llama(vocab_size=100, initializer_range=0.2)

    solved = tuned(sharp(), steps=1, rate=0.0, range_rate=0.0)
    trained = tuned(sharp(), steps=20, rate=3e-3, range_rate=3e-3)
    assert trained.report.after.kl_divergence < 0.8 * solved.report.after.kl_divergence
    assert trained.report.before.perplexity == solved.report.before.perplexity


def test_the_same_seed_gives_the_same_model(small_llama):
    first, second = (tuned(small_llama(vocab_size=100), steps=3, seed=1).model.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_model_that_writes_no_text_is_refused():
    with pytest.raises(PlanError, match="no causal language model; train it in a loop of your own"):
        tuned(torch.nn.Sequential(torch.nn.Linear(64, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps 0 is no number of steps"), ({"rate": 2.0}, r"rate 2.0 is not in \[0, 1\)")],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Finetuning(**options)


@pytest.mark.slow
def test_the_command_trains_the_demo_model_and_writes_it(tmp_path, capsys):
    words = "finetune smollm2 --recipe w2a16 --steps 1 --batch-size 1 --samples 1 --training-length 32 --sequences 1"
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as leave:
        main([*words.split(), "--length", "64", "--text", str(text), "-o", str(out), "--json"])
    assert leave.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(out)
    assert {layer["algorithm"] for layer in report["layers"]} == {"training, lsq", None}
    assert {str(own.scheme) for own in fb.load(out).plan.quantized} == {"int2 g64"}


def test_a_dry_run_prints_what_the_training_takes_and_writes_nothing(small_llama, tmp_path, capsys):
    small_llama(vocab_size=100).save_pretrained(tmp_path / "float")
    words = ["finetune", str(tmp_path / "float"), "--recipe", "w4a16", "--dry-run", "--training-length", "16"]
    found = []
    for further in ([], ["--json"]):
        with pytest.raises(SystemExit) as leave:
            main([*words, *further])
        assert leave.value.code == 0
        found.append(capsys.readouterr().out)
    memory = json.loads(found[1])["memory"]
    model = fb.prepare_qat(small_llama(vocab_size=100), "w4a16", to="compressed-tensors")
    trained = sum(own.numel() for own in model.parameters())
    assert memory["gradients"] == 4 * trained
    assert memory["optimizer"] == 8 * trained + 4 * len(list(model.parameters()))
    assert memory["activations"] > 0
    assert "the float model to follow" in found[0]
    assert "training, lsq" in found[0]
    assert [own.name for own in tmp_path.iterdir()] == ["float"]


def test_a_training_without_a_place_to_write_is_refused(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["finetune", "smollm2"])
    assert leave.value.code == 2
    assert "nowhere to write: give -o OUT, or --dry-run" in capsys.readouterr().err
