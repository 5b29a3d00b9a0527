"""Hostile and broken models through the command line: exit code 2, one line, no traceback, nothing written."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch

import fewbit as fb
from fewbit.cli.application import main


class Bomb:
    """Unpickling it leaves a file `canary` in the working directory."""

    def __reduce__(self):
        return open, ("canary", "w")


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


ENTRY = b'{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
LLAMA = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
#: What the model is: its files, by name, or the content of a single file; the line of error that it has to give.
MODELS = {
    "a folder without anything": ({}, "is not a model folder: config.json cannot be read (no such file)"),
    "weights without configuration": (
        {"model.safetensors": header(b"{}")}, "it belongs beside model.safetensors, take it from where the weights"),
    "a configuration without weights": ({"config.json": LLAMA}, "holds no .safetensors file; is the download com"),
    "pickled weights": (
        {"config.json": LLAMA, "pytorch_model.bin": pickle.dumps(Bomb())},
        "holds no .safetensors file but pytorch_model.bin: reading pickled weights can run code"),
    "a pickle": (pickle.dumps(Bomb()), "is a pickle, or may hold one: reading it can run code, so it is not read"),
    "a header of 2^63 bytes": (
        {"config.json": LLAMA, "model.safetensors": struct.pack("<Q", 2**63)},
        "is not a readable safetensors file: its header claims 9223372036854775808 bytes and 0 follow"),
    "a name twice": (
        {"config.json": LLAMA, "model.safetensors": header(b'{"a": %s, "a": %s}' % (ENTRY, ENTRY), bytes(8))},
        "its header names 'a' twice; which of them counts is not said"),
    "a name that leaves": (
        {"config.json": LLAMA, "model.safetensors": header(b'{"../a": %s}' % ENTRY, bytes(8))},
        "tensor name '../a' reads as a path out of its folder; rename the tensor"),
    "a header nested without end": (
        {"config.json": LLAMA, "model.safetensors": header(b"[" * 200_000)}, "its JSON nests deeper than 64"),
    "an index that leaves": (
        {"config.json": LLAMA, "model.safetensors.index.json": b'{"weight_map": {"a": "../../a.safetensors"}}'},
        "puts 'a' into the file '../../a.safetensors'; only plain .safetensors names are read"),
    "a configuration nested without end": ({"config.json": b'{"a": ' * 100_000}, "its JSON nests deeper than 64"),
    "no UTF-8": ({"config.json": b"\xff\xfe"}, "config.json is not valid JSON: 'utf-8' codec can't decode byte 0xff"),
    "quantization of an unknown kind": (
        {"config.json": b'{"quantization_config": {"quant_method": "mystery"}}'}, "is quantized by 'mystery', which"),
    "a GGUF of 2^63 tensors": (
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "claims 9223372036854775808 tensors, which take"),
    "a GGUF of 2^62 words": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**62),
        "claims 4611686018427387904 elements of the array 'a'"),
    "a GGUF in the other order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is GGUF in big-endian byte order; convert"),
    "a GGUF cut short": (b"GGUF\3\0\0\0\1", "claims 16 bytes for the counts of tensors and keys and 1 are left"),
    "noise": (bytes(range(1, 256)), "is not a GGUF file; a model is a Hugging Face folder, a .gguf file or smollm2"),
}  # fmt: skip
#: Those that plan and run need more of than `inspect` does, which only lists tensors.
CONFIGURATIONS = {
    "code of its own": (
        {"model_type": "llama", "auto_map": {"AutoModel": "remote.Remote"}}, "needs the class Remote from code in the"),
    "an unknown type": ({"model_type": "lama"}, "has model_type 'lama', which transformers"),
    "a width of 10^12": (
        {"model_type": "llama", "hidden_size": 10**12}, "says hidden_size = 1000000000000, but the longest"),
    "10^9 layers": (
        {"model_type": "llama", "num_hidden_layers": 10**9}, "says num_hidden_layers = 1000000000, but the f"),
    "other shapes": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1,
         "vocab_size": 9, "intermediate_size": 32, "num_attention_heads": 4},
        "holds lm_head.weight of shape [2]; the model of its configuration has [9, 64]"),
}  # fmt: skip


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """Run a command line beside the model; return its exit code and what stands on standard error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        assert printed.out == ""
        assert list(Path.cwd().iterdir()) == []
        return left.value.code, printed.err

    return call


def put(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
    path.mkdir()
    for name, part in content.items():
        (path / name).write_bytes(part)
    return path


def refused(code, err, message):
    assert code == 2
    assert err.startswith("fewbit: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


COMMANDS = {
    "inspect": ["inspect", "MODEL"],
    "plan": ["quantize", "MODEL", "--dry-run", "--weight", "int8"],
    "quantize": ["quantize", "MODEL", "-o", "out", "--weight", "int8", "--text", "none"],
    "evaluate": ["evaluate", "MODEL"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", MODELS)
def test_a_hostile_model_leaves_with_two_and_one_line(run, tmp_path, case, command):
    content, message = MODELS[case]
    model = put(tmp_path / "model", content)
    refused(*run(*(str(model) if word == "MODEL" else word for word in COMMANDS[command])), message)


@pytest.mark.parametrize("command", ["plan", "quantize", "evaluate"])
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_that_does_not_fit_leaves_with_two_and_one_line(run, tmp_path, case, command):
    configuration, message = CONFIGURATIONS[case]
    files = {
        "config.json": json.dumps(configuration).encode(),
        "model.safetensors": header(b'{"lm_head.weight": %s}' % ENTRY, bytes(8)),
        "remote.py": b"open('canary', 'w')",
    }
    model = put(tmp_path / "model", files)
    refused(*run(*(str(model) if word == "MODEL" else word for word in COMMANDS[command])), message)


def test_debug_shows_where_a_hostile_model_was_refused(run, tmp_path):
    code, err = run("--debug", "inspect", put(tmp_path / "model", pickle.dumps(Bomb())))
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert "fewbit.errors.SourceError: " in err


def test_inspect_of_a_damaged_quantized_folder_names_the_layer(run, tmp_path):
    from safetensors.numpy import load_file, save_file

    torch.manual_seed(0)
    recipe = fb.Recipe([fb.Rule("0", weight="int4 g32")])
    fb.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)), recipe, to="compressed-tensors").save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    arrays = load_file(file)
    arrays["0.weight_scale"][3, 1] = float("nan")
    save_file(arrays, file)
    refused(*run("inspect", tmp_path / "model"), "0: 1 of 16 scales are NaN or infinite; the file is damaged")
