"""A folder quantized from disk to disk: the bytes of the run in memory, one block at a time, within the prediction."""

import json
from dataclasses import replace

import pytest
import torch

import fewbit as fb
from fewbit.errors import CheckpointError, NotYetError, PlanError
from fewbit.folder_run import FolderRun
from fewbit.presets import parse_recipe
from fewbit.streaming import prepared

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
SHARD = "30KB"


def saved(folder, name, *, blocks=2):
    """Write a small model: `llama` with tied weights in bfloat16, or `opt`, blocks as GPT-2's: biases, positions."""
    torch.manual_seed(0)
    if name == "llama":
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=blocks, num_attention_heads=4, vocab_size=128,
            num_key_value_heads=2, tie_word_embeddings=True, dtype=torch.bfloat16, initializer_range=0.2,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    else:
        config = transformers.OPTConfig(
            hidden_size=64, ffn_dim=96, num_hidden_layers=blocks, num_attention_heads=4, vocab_size=128,
            word_embed_proj_dim=64, max_position_embeddings=64, init_std=0.2,
        )  # fmt: skip
        model = transformers.OPTForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: saved(folder / name, name) for name in ("llama", "opt")}


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 128, (1, length), generator=generator) for length in (24, 24, 16)]


def content(folder):
    """The bytes of the files of a model; what a report says of time and place is not among them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("report.")}


def in_memory(model, recipe, to, batches, path, **options):
    result = fb.quantize(str(model), recipe, to=to, calibration=batches, **options)
    return result, content(result.save(path, to=to, shard_size=SHARD))


# The second recipe has layers that need no data among such that do: those come first, as in memory.
MIXED = fb.Recipe(
    [
        fb.keep(kind="head"),
        fb.Rule(kind="embedding", weight="bf16"),
        fb.Rule(r".*(k_proj|fc1|up_proj)", weight="int8"),
        fb.Rule(kind="linear", weight="int4 g32 asym", algorithm=fb.Gptq()),
    ],
    name="mixed",
)


@pytest.mark.parametrize(
    ("model", "recipe", "to"),
    [
        ("llama", "w4a16", "compressed-tensors"),
        ("llama", "w8a8-static", "compressed-tensors"),
        ("llama", "nvfp4", "compressed-tensors"),
        ("llama", MIXED, "compressed-tensors"),
        ("opt", MIXED, "compressed-tensors"),
        ("opt", "w4a16", "gptq"),
        ("llama", "w4a16-asym", "awq"),
    ],
)
def test_the_bytes_are_those_of_the_run_in_memory(models, batches, tmp_path, model, recipe, to):
    result, wanted = in_memory(models[model], recipe, to, batches, tmp_path / "memory")
    report = fb.quantize_folder(
        models[model], tmp_path / "out", recipe, to=to, calibration=batches, shard_size=SHARD
    )  # fmt: skip
    assert len([name for name in wanted if name.endswith(".safetensors")]) > 1
    assert content(tmp_path / "out") == wanted
    assert [(own.name, own.becomes, own.solved_sqnr, own.histogram) for own in report.layers] == [
        (own.name, own.becomes, own.solved_sqnr, own.histogram) for own in result.report.layers
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory", "out"]


@pytest.mark.parametrize("recipe", ["nf4", "w8a16", "nvfp4a16", "fp16"])
def test_without_data_it_is_tensor_by_tensor(models, tmp_path, monkeypatch, recipe):
    from fewbit.frontends.torch.residence import Residence

    to, options = ("gptq", {}) if recipe == "w8a16" else ("compressed-tensors", {})
    options = {"calibration": "none"} if recipe == "nvfp4a16" else options
    if recipe == "nf4":  # no layout of folders has it: the recipe is one that rounds the head too
        recipe = fb.Recipe([fb.Rule(kind="head", weight="int8"), fb.Rule(kind="linear", weight="int4 g32")])
    result = fb.quantize(str(models["llama"]), recipe, to=to, **options)
    wanted = content(result.save(tmp_path / "memory", to=to, shard_size=SHARD))
    held = []
    dress = Residence.load

    def counting(self, part):
        dress(self, part)
        held.append(sum(own.numel() for own in self._model.parameters() if own.dim() == 2 and not own.is_meta))

    monkeypatch.setattr(Residence, "load", counting)
    fb.quantize_folder(models["llama"], tmp_path / "out", recipe, to=to, shard_size=SHARD, **options)
    assert content(tmp_path / "out") == wanted
    assert max(held) == 128 * 64  # the largest weight, of the head


def test_with_little_memory_blocks_are_run_anew_for_each_layer_to_the_same_bytes(models, batches, tmp_path):
    def asked(memory, name):
        recipe = parse_recipe("w4a16")
        return FolderRun(model=models["llama"], output=tmp_path / name, recipe=recipe, calibration=batches * 2000,
                         memory=memory)  # fmt: skip

    wide = prepared(asked(None, "wide")).work.streamed
    assert wide.waiting
    narrow = prepared(asked(wide.budget.memory - (1 << 20), "narrow")).work.streamed
    assert not narrow.waiting
    assert narrow.budget.memory < wide.budget.memory
    for name, waiting in {"one": True, "other": False}.items():
        run = prepared(replace(asked(None, name), calibration=batches))
        replace(run, work=replace(run.work, streamed=replace(run.work.streamed, waiting=waiting))).carry_out()
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_a_run_that_would_take_more_memory_is_refused_with_what_it_would_take(models, batches, tmp_path):
    with pytest.raises(
        PlanError, match=r"would take [\d,]+ bytes of memory, .* and --memory is 50,000,000; its largest"
    ):
        fb.quantize_folder(models["llama"], tmp_path / "out", "w4a16", calibration=batches, memory="50MB")
    assert list(tmp_path.iterdir()) == []


def test_the_report_says_what_was_predicted_and_that_nothing_was_measured(models, tmp_path):
    report = fb.quantize_folder(models["llama"], tmp_path / "out", "w8a16")
    predicted = next(text for text in report.remarks if "predicted: at most" in text)
    assert any("quality was not measured" in text for text in report.remarks)
    assert predicted.startswith("quantized from disk to disk; predicted: at most ")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["remarks"] == list(report.remarks)


@pytest.mark.parametrize(
    ("recipe", "options", "error", "why"),
    [
        ("w4a16", {}, PlanError, "needs calibration data, and a model that is read block by block writes no text"),
        ("w4a16", {"data": True, "written": 3}, PlanError, "3 sequences are to be written besides the calibration"),
        ("w8a16", {"to": "gguf"}, NotYetError, "gguf is not written block by block"),
        (fb.Recipe([fb.Rule(kind="linear", weight="int8")], transforms=["rotation"]), {}, NotYetError,
         "transform rotation, which is not streamed; leave that out"),
        (fb.Recipe([fb.Rule(kind="head", weight="int4 g32", algorithm="gptq")]), {"data": True}, PlanError,
         "lm_head: outside of the blocks"),
        (fb.Recipe([fb.Rule(kind="linear", weight="int4 g32", algorithm="autoround")]), {"data": True}, NotYetError,
         "autoround, which is not streamed"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused_before_anything_is_written(
    models, batches, tmp_path, recipe, options, error, why
):
    data = batches if options.pop("data", False) else None
    data = fb.Calibration(data=data, written=written) if (written := options.pop("written", 0)) else data
    with pytest.raises(error, match=why):
        fb.quantize_folder(models["llama"], tmp_path / "out", recipe, calibration=data, **options)
    assert list(tmp_path.iterdir()) == []


def test_only_folders_are_streamed(tmp_path):
    with pytest.raises(NotYetError, match="no folder of safetensors files"):
        fb.quantize_folder("smollm2", tmp_path / "out", "w8a16")


def test_a_model_folder_is_replaced_only_when_asked_to(models, tmp_path):
    fb.quantize_folder(models["llama"], tmp_path / "out", "w8a16")
    with pytest.raises(CheckpointError, match="exists; choose another name"):
        fb.quantize_folder(models["llama"], tmp_path / "out", "fp8a16")
    fb.quantize_folder(models["llama"], tmp_path / "out", "fp8a16", overwrite=True)
    assert fb.load(tmp_path / "out").plan.rows[1].becomes.startswith("e4m3")
