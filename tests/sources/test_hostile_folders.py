"""Model folders that are incomplete, contradict themselves or bring code: a clear error, no code, nothing random."""

import json
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fewbit as fb
from fewbit.errors import CheckpointError, FewbitError, SourceError
from fewbit.sources import open_source

RECIPE = "w8a16"


def refused(folder, message, *, loading=False, kind=SourceError):
    """Plan the folder, or also load it where a fault shows only then: an error of that kind and text."""
    if loading:
        fb.plan(folder, RECIPE)
    with pytest.raises(FewbitError, match=re.escape(message)) as caught:
        fb.quantize(folder, RECIPE) if loading else fb.plan(folder, RECIPE)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    with pytest.raises(kind, match=re.escape(message)):
        fb.quantize(folder, RECIPE)


def weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_the_folder_of_these_tests_is_quantized_when_nothing_is_wrong(model):
    assert fb.quantize(model, RECIPE).model(torch.arange(8)[None]).logits.shape == (1, 8, 320)


# What is missing.


def test_weights_without_configuration_are_refused(model):
    (model / "config.json").unlink()
    refused(model, "is not a model folder: config.json cannot be read (no such file); it belongs beside model.safet")


def test_a_configuration_without_weights_is_refused_before_the_work(model):
    (model / "model.safetensors").unlink()
    refused(model, f"{model} holds no .safetensors file; is the download complete?")


def test_weights_of_a_name_that_transformers_does_not_read_are_refused(model):
    (model / "model.safetensors").rename(model / "weights.safetensors")
    refused(model, "holds weights.safetensors, but transformers reads model.safetensors or model.safetensors.index")


def test_a_shard_of_a_distributed_checkpoint_is_refused(model):
    (model / "shard-00000-model-00001-of-00001.safetensors").write_bytes(b"")
    refused(model, "holds a distributed checkpoint (shard-00000-model-00001-of-00001.safetensors)")


def test_a_damaged_file_of_weights_is_named_before_the_work(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(model, f"{file} is not a readable safetensors file: its tensors take", kind=CheckpointError)


def test_a_missing_tensor_is_never_filled_at_random(model):
    weights(model, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(model, "lacks model.layers.1.mlp.up_proj.weight (1 in all); is the download complete", loading=True)


def test_a_layer_more_than_the_files_hold_is_never_filled_at_random(model, configure):
    configure(num_hidden_layers=3)
    refused(model, "lacks model.layers.2.self_attn.q_proj.weight, model.layers.2.self_attn.k_proj.weight", loading=True)


def test_a_layer_less_than_the_files_hold_is_never_left_out_in_silence(model, configure):
    configure(num_hidden_layers=1)
    message = "holds what the model of its configuration has no place for: model.layers.1.input_layernorm.weight"
    refused(model, message, loading=True)


def test_a_head_that_a_tied_model_has_no_file_for_is_tied_and_not_missing(model, configure):
    weights(configure(tie_word_embeddings=True), lambda tensors: tensors.pop("lm_head.weight"))
    result = fb.quantize(model, RECIPE)
    assert result.model.lm_head.weight is result.model.model.embed_tokens.weight


# What contradicts.

SHAPES = {
    "hidden_size": (128, "model.embed_tokens.weight", [320, 64], [320, 128]),
    "intermediate_size": (100, "model.layers.0.mlp.gate_proj.weight", [96, 64], [100, 64]),
    "num_key_value_heads": (4, "model.layers.0.self_attn.k_proj.weight", [32, 64], [64, 64]),
    "vocab_size": (321, "model.embed_tokens.weight", [320, 64], [321, 64]),
    "head_dim": (8, "model.layers.0.self_attn.q_proj.weight", [64, 64], [32, 64]),
}


@pytest.mark.parametrize("key", SHAPES)
def test_a_configuration_of_other_shapes_names_the_first_tensor_and_both_shapes(model, configure, key):
    value, name, stored, wanted = SHAPES[key]
    configure(**{key: value})
    message = f"{model} holds {name} of shape {stored}; the model of its configuration has {wanted}; configuration and"
    refused(model, message)


ABSURD = {
    "a width of 10^12": (
        {"hidden_size": 10**12}, "says hidden_size = 1000000000000, but the longest axis of a tensor in the"),
    "a width of 10^30": ({"intermediate_size": 10**30}, f"says intermediate_size = {10**30}, but the longest axis"),
    "10^12 words": ({"vocab_size": 10**12}, "says vocab_size = 1000000000000, but the longest axis"),
    "10^9 layers": ({"num_hidden_layers": 10**9}, "says num_hidden_layers = 1000000000, but the files hold 21 tensors"),
    "10^10 labels": ({"num_labels": 10**10}, "says num_labels = 10000000000, but the longest axis"),
    "10^9 experts inside": (
        {"text_config": {"num_local_experts": 10**9}}, "says num_local_experts = 1000000000, but the files hold 21"),
    "a width that files could have": ({"intermediate_size": 10**6}, "holds model.layers.0.mlp.gate_proj.weight of"),
    "heads of 10^12": ({"head_dim": 10**12}, "holds model.layers.0.self_attn.q_proj.weight of shape [64, 64]"),
    "heads of 10^18": ({"head_dim": 10**18}, "transformers cannot build the model that the configuration of"),
}  # fmt: skip


@pytest.mark.parametrize("case", ABSURD)
def test_an_absurd_size_is_refused_before_anything_is_allocated(model, configure, case):
    values, message = ABSURD[case]
    configure(**values)
    before = peak_bytes()
    refused(model, message)
    assert peak_bytes() - before < 256 << 20


def peak_bytes():
    """The most memory that this process ever had, by the kernel's account."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_more_numbers_than_the_files_hold_under_names_that_they_do_not_have_are_refused(model):
    weights(model, lambda tensors: [tensors.update({f"x.{name}": tensors.pop(name)}) for name in list(tensors)])
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 10**5}))
    refused(model, "describes a model of 38465856 numbers, its files hold 102720")


def test_buffers_that_no_memory_holds_are_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from fewbit.sources.weights import require_small_buffers

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=300, n_positions=16))
        require_small_buffers(model, "m")
        model.register_buffer("table", torch.empty(1 << 20, 1 << 12))
    with pytest.raises(
        SourceError, match=r"the configuration of m describes buffers of \d+ bytes, more than the model"
    ):
        require_small_buffers(model, "m")


WRONG = {
    "an unknown type of model": ({"model_type": "lama"}, "has model_type 'lama', which transformers"),
    "no type of model": ({"model_type": None}, "has model_type None, which transformers"),
    "a type of model that is a list": ({"model_type": ["llama"]}, "has model_type ['llama'], which transformers"),
    "an unknown class": ({"architectures": ["LamaForCausalLM"]}, "has no class 'LamaForCausalLM'"),
    "a class that is no model": ({"architectures": ["LlamaConfig"]}, "has no class 'LlamaConfig'"),
    "classes that are text": ({"architectures": "LlamaForCausalLM"}, "has architectures 'LlamaForCausalLM', which is"),
    "classes that are numbers": ({"architectures": [1]}, "has architectures [1], which is no list of names"),
    "text for a number": ({"hidden_size": "64"}, "transformers cannot read the configuration of"),
    "a negative size": ({"hidden_size": -64}, "transformers cannot build the model that the configuration of"),
    "no heads": ({"num_attention_heads": 0}, "transformers cannot"),
    "an unknown activation": ({"hidden_act": "nope"}, "transformers cannot build the model that the configuration of"),
    "unknown positions": ({"rope_parameters": {"rope_type": "nope"}}, "transformers cannot"),
    "a type of numbers that is none": ({"dtype": "nope"}, "transformers cannot"),
    "padding outside of the vocabulary": ({"pad_token_id": 10**9}, "transformers cannot build the model"),
    "quantization by no method": (
        {"quantization_config": {"load_in_8bit": True}}, "has a quantization_config without quant_me"),
    "quantization that is a list": ({"quantization_config": [1]}, "without quant_method: [1]"),
    "weights elsewhere": (
        {"transformers_weights": "adapter_model.bin"}, "names other weights (transformers_weights = 'ad"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_configuration_that_makes_no_model_is_refused(model, configure, case):
    values, message = WRONG[case]
    configure(**values)
    refused(model, message)


BROKEN = {
    "empty": (b"", "config.json is not valid JSON"),
    "cut off": (b'{"model_type": ', "config.json is not valid JSON"),
    "a list": (b"[]", "config.json does not hold a JSON object but a list"),
    "no UTF-8": (b'{"a": "\xff"}', "config.json is not valid JSON: 'utf-8' codec"),
    "a key twice": (b'{"model_type": "llama", "model_type": "bert"}', "config.json names 'model_type' twice"),
    "nested without end": (b'{"a": ' + b"[" * 200_000, "nests deeper than 64"),
    "a number of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "config.json is not valid JSON: Exceeds the limit"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_configuration_that_is_no_json_object_is_refused(model, case):
    content, message = BROKEN[case]
    (model / "config.json").write_bytes(content)
    refused(model, message)


# What brings code. Each of these would leave a file behind if anything ran.


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code out of the folder was run"


def plant(path, canary):
    """Write a pickle as torch does, and one as pickle does, that betray themselves when read."""
    torch.save({"weight": Bomb(canary)}, path)
    path.with_name(f"{path.name}.pkl").write_bytes(pickle.dumps(Bomb(canary)))


def test_the_bombs_of_these_tests_go_off_when_they_are_read(tmp_path):
    for name in ("by_torch", "by_pickle"):
        plant(tmp_path / "m.bin", tmp_path / name)
        if name == "by_torch":
            torch.load(tmp_path / "m.bin", weights_only=False)["weight"].close()
        else:
            pickle.loads((tmp_path / "m.bin.pkl").read_bytes()).close()
        assert (tmp_path / name).exists()


PICKLED = ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "consolidated.00.pth"]


@pytest.mark.parametrize("name", PICKLED)
def test_a_folder_with_pickled_weights_only_is_refused_with_the_remedy(model, canary, name):
    (model / "model.safetensors").unlink()
    torch.save({"weight": Bomb(canary)}, model / name)
    refused(model, f"holds no .safetensors file but {name}: reading pickled weights can run code")
    with pytest.raises(FewbitError, match="save_pretrained the model"):
        fb.quantize(model, RECIPE)


@pytest.mark.parametrize("index", [False, True])
def test_pickled_weights_beside_safetensors_are_not_touched(model, canary, index):
    for name in (
        "pytorch_model.bin",
        "adapter_model.bin",
        "training_args.bin",
        "model.pt",
        "tokenizer.bin",
        "vocab.bin",
    ):
        plant(model / name, canary)
    (model / ".metadata").write_bytes(pickle.dumps(Bomb(canary)))
    if index:
        (model / "pytorch_model.bin.index.json").write_text('{"weight_map": {"lm_head.weight": "pytorch_model.bin"}}')
    result = fb.quantize(model, RECIPE)
    assert open_source(model).tokenizer()("w1 w2")["input_ids"] == [1, 2]
    out = result.save(model.parent / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "report.html", "report.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl", "m.pickle", "m", "m.gguf"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickled_file_as_the_model_is_refused_whatever_its_name(tmp_path, canary, name, form):
    path = tmp_path / name
    if form == "torch":
        torch.save({"weight": Bomb(canary)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(canary)))
    refused(path, f"{path} is a pickle, or may hold one: reading it can run code")


def test_a_lone_file_of_weights_is_refused_with_the_remedy(model):
    refused(model / "model.safetensors", "holds weights only; give the folder where it lies beside its config.json")


def write_code(folder, canary, *names):
    for name in names:
        (folder / name).write_text(f"open({str(canary)!r}, 'w')\nclass Remote: pass\nclass RemoteConfig: pass\n")


AUTO_MAPS = [
    {"AutoModelForCausalLM": "remote.Remote"},
    {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.Remote"},
    {"AutoModelForCausalLM": "someone/else--remote.Remote"},
    "remote.Remote",
]


@pytest.mark.parametrize("auto_map", AUTO_MAPS)
@pytest.mark.parametrize("kind", ["llama", "remote"])
def test_a_model_that_needs_code_of_its_folder_is_refused_and_the_class_named(model, configure, canary, auto_map, kind):
    write_code(model, canary, "remote.py")
    configure(auto_map=auto_map, model_type=kind)
    refused(model, "config.json needs the class Remote")
    with pytest.raises(SourceError, match=r"trust_remote_code=True and give the module to fewbit\.quantize"):
        fb.plan(model, RECIPE)


def test_code_for_a_class_that_transformers_has_is_not_run_and_not_needed(model, configure, canary):
    write_code(model, canary, "modeling_llama.py", "configuration_llama.py", "tokenizer.py")
    configure(
        auto_map={
            "AutoConfig": "configuration_llama.LlamaConfig",
            "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM",
        }
    )
    assert type(fb.quantize(model, RECIPE).model).__module__ == "transformers.models.llama.modeling_llama"


def test_code_for_generating_is_not_run(model, canary):
    (model / "custom_generate").mkdir()
    write_code(model / "custom_generate", canary, "generate.py")
    generated = fb.quantize(model, RECIPE).model.generate(torch.arange(3)[None], max_new_tokens=2, do_sample=False)
    assert generated.shape == (1, 5)


@pytest.mark.parametrize("named", [{"AutoTokenizer": ["remote.Remote", None]}, ["remote.Remote", None]])
def test_a_tokenizer_that_needs_code_of_its_folder_is_refused_and_the_class_named(model, configure, canary, named):
    write_code(model, canary, "remote.py")
    configure("tokenizer_config.json", auto_map=named)
    with pytest.raises(SourceError, match=r"tokenizer_config\.json needs the class Remote from code in the folder"):
        open_source(model).tokenizer()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": ' + b"[" * 100_000])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_refused(model, file, content):
    (model / file).write_bytes(content)
    with pytest.raises(SourceError, match=re.escape(str(model))):
        open_source(model).tokenizer()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_that_a_configuration_names_are_not_fetched(model, configure, key):
    configure(**{key: "someone/kernels"})
    built = fb.quantize(model, RECIPE).model
    assert built.config._attn_implementation in ("sdpa", "eager")


def test_a_quantized_folder_that_needs_code_is_refused(model, canary):
    fb.quantize(model, RECIPE, to="compressed-tensors").save(model.parent / "out")
    path = model.parent / "out" / "config.json"
    write_code(path.parent, canary, "remote.py")
    fb.load(path.parent)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": AUTO_MAPS[0]}))
    with pytest.raises(SourceError, match=r"config\.json needs the class Remote from code in the folder"):
        fb.load(path.parent)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 10**12}, "says hidden_size = 1000000000000, but the longest axis"),
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers = 1000000000, but the files hold"),
        ({"intermediate_size": 128}, "holds model.layers.0.mlp.down_proj of shape (64, 96); the model has (64, 128)"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2."),
        ({"num_hidden_layers": 1}, "holds model.layers.1.mlp.down_proj of shape (64, 96); the model has no such layer"),
        ({"model_type": "lama"}, "has model_type 'lama', which transformers"),
        ({"hidden_size": "64"}, "transformers cannot read the configuration of"),
    ],
)
def test_a_quantized_folder_whose_configuration_does_not_fit_is_refused(model, values, message):
    out = fb.quantize(model, RECIPE, to="compressed-tensors").save(model.parent / "out")
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(FewbitError, match=re.escape(message)):
        fb.load(out)


def test_an_adapter_is_refused_with_the_remedy(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    refused(model, "holds an adapter (adapter_config.json); merge it into its base model")


def test_a_length_that_claims_more_than_the_file_is_named_through_the_api(model):
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(model, f"its header claims {2**63} bytes and 2 follow", kind=CheckpointError)
