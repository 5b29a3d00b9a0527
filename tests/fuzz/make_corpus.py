"""Writes the seeds of every reader into `corpus/`: small genuine files, from which a fuzzer starts. A program.

    python tests/fuzz/make_corpus.py

What is there already stays; `crash-*` are inputs that once ended in another error than the documented one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from framed import Files, framed
from genuine_checkpoints import U32, folders, gguf_models, legacy, legacy_entries, matrices
from genuine_files import safetensors_files
from gguf_text import GgufText, Value
from safetensors.numpy import save

CORPUS = Path(__file__).with_name("corpus")
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8, "dtype": "float32",
    "tie_word_embeddings": True, "max_position_embeddings": 32,
}  # fmt: skip
RECIPES = (
    '[[rules]]\nmatch = ".*\\\\.mlp\\\\..*"\nweight = "int4 g64 asym"\nalgorithm = { name = "gptq", damping = 0.01 }\n'
    '[[rules]]\nkind = "head"\nkeep = true\n',
    'transforms = ["smoothquant"]\n[[rules]]\nkind = "linear"\nweight = "int8 channel"\ninput = "int8 static entropy"\n'
    "optional = true\n",
    "corrections = [{ name = \"bias\" }]\n[[rules]]\nmatch = 'model\\.(layers\\.\\d++\\.)+(q|k)_proj'\n"
    "weight = '''nvfp4'''\n[[rules]]\nkind = \"conv\"\nweight = \"e4m3 tile128x128\"\nbias = \"float\"\n",
)
PREPROCESSING = (
    "size = [224, 200]\nresize = 'crop'\nshorter_side = 256\ninterpolation = 'bilinear'\nchannels = 'bgr'\n"
    "scale = 0.0039\nmean = [0.4, 0.4, 0.4]\nstd = 0.2\nlayout = 'NHWC'\ndtype = 'float16'\n"
)


def seeds() -> dict[str, list[bytes]]:
    """Return the seeds by reader."""
    found = {method: _few(method) for method in ("gptq", "awq", "compressed-tensors")}
    models = gguf_models()
    return found | {
        "safetensors": [file for file in safetensors_files() if len(file) < 6000],
        "index": [_index()],
        "gguf": [models[number].written() for number in (0, 7, 13)],
        "gguf-parts": [_parts(models[4])],
        "importance": [*(own.written() for own in matrices()), legacy(legacy_entries())],
        "onnx": _onnx(),
        "configuration": [_configuration()],
        "tokenizer-values": [framed(own) for own in _tokenizers()],
        "tokenizer": [framed(own) for own in _tokenizers()[:2]],
        "recipe": [text.encode() for text in RECIPES],
        "preprocessing": [PREPROCESSING.encode()],
        "npy": [_saved(np.save, np.arange(12).reshape(6, 2).astype(kind)) for kind in ("<f4", ">i2", "?")],
        "npz": [
            _saved(save_all, np.ones((6, 2), np.float32), np.arange(6)) for save_all in (np.savez, np.savez_compressed)
        ] + [_saved(np.savez_compressed, x=np.ones((6, 2), np.float32), labels=np.arange(6))],
        "labels": [b"file,class\na.png,0\nb.png,3\n", b"0\n1\n"],
        "adapters": [_adapters()],
    }  # fmt: skip


def _few(method: str) -> list[bytes]:
    """Return folders of a method, the one in two files among them."""
    made = folders(method)
    kept = made if len(made) < 9 else [*made[:10:2], made[10], *made[-3:-1]]
    return [framed(own) for own in kept if "model.safetensors" in own or own is made[-1]]


def _index() -> bytes:
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    parts = {name: save({name[6:11]: np.ones((2, 3), np.float16)}, {"format": "pt"}) for name in names}
    table = {"metadata": {"total_size": 24}, "weight_map": {name[6:11]: name for name in names}}
    return framed({"model.safetensors.index.json": json.dumps(table).encode(), **parts})


def _parts(model: GgufText) -> bytes:
    half = len(model.tensors) // 2
    files = {}
    for number, own in enumerate((model.tensors[:half], model.tensors[half:])):
        split = [Value("split.no", U32, number), Value("split.count", U32, 2)]
        split += [Value("split.tensors.count", U32, len(model.tensors))]
        kept = [one for one in own if len(one.data) < 4000]
        split[2].value = sum(len(one.data) < 4000 for one in model.tensors)
        values = model.values if number == 0 else []
        files[f"m-0000{number + 1}-of-00002.gguf"] = GgufText([*values, *split], kept).written()
    return framed(files)


def _onnx() -> list[bytes]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    packed = helper.make_tensor("p", TensorProto.INT4, [3, 4], np.arange(6, dtype=np.uint8).tobytes(), raw=True)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [3], [0.5, 1.0, 2.0])
    body = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, [3, 4])]
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["p", "s"], ["d"], axis=0),
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", 9, [], [True])),
        helper.make_node("If", ["c"], ["i"], then_branch=body, else_branch=body),
        helper.make_node("Add", ["i", "d"], ["a"]),
        helper.make_node("MatMul", ["x", "a"], ["y"], name="product"),
    ]
    inputs, outputs = ([helper.make_tensor_value_info(name, 1, ["n", size])] for name, size in (("x", 3), ("y", 4)))
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight, packed, scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    whole = model.SerializeToString()
    own = model.graph.initializer[0]
    own.ClearField("raw_data")
    own.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "m.data"), ("offset", "0"), ("length", "48")):
        entry = own.external_data.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(whole)
    data = numpy_helper.to_array(weight).tobytes()
    return [framed({"m.onnx": whole}), framed({"m.onnx": model.SerializeToString(), "m.data": data})]


def _configuration() -> bytes:
    rows = {"model.embed_tokens": (8, 16), "model.norm": (16,)}
    block = {
        "input_layernorm": (16,), "post_attention_layernorm": (16,), "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16), "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (16, 16), "mlp.up_proj": (16, 16), "mlp.down_proj": (16, 16),
    }  # fmt: skip
    rows |= {f"model.layers.0.{name}": shape for name, shape in block.items()}
    tensors = {f"{name}.weight": np.ones(shape, np.float16) for name, shape in rows.items()}
    content = save(tensors, {"format": "pt"})
    return framed({"config.json": json.dumps(LLAMA).encode(), "model.safetensors": content})


def _tokenizers() -> list[Files]:
    """Return a byte-level BPE, one with bytes as a last resort, and one of SentencePiece."""
    vocabulary = {text: number for number, text in enumerate(["<s>", "</s>", "a", "b", "Ġ", "ab", "Ġa"])}
    special = [{"id": 0, "content": "<s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False}]  # fmt: skip
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ]
    byte_level = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"], ["Ġ", "a"]], "ignore_merges": False},
    }  # fmt: skip
    pieces = {"<unk>": 0, "<0x41>": 1, "\u2581": 2, "a": 3, "\u2581a": 4}
    fallback = byte_level | {
        "normalizer": {"type": "Prepend", "prepend": "\u2581"}, "pre_tokenizer": None, "decoder": None,
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": pieces, "merges": ["\u2581 a"]},
        "added_tokens": [],
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "add_bos_token": True, "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "added_tokens_decoder": {"1": {"content": "</s>", "special": True, "lstrip": False, "rstrip": False,
                                       "normalized": False, "single_word": False}},
    }  # fmt: skip
    spell: Callable[[object], bytes] = lambda table: json.dumps(table).encode()  # noqa: E731
    said = {"tokenizer_config.json": spell(settings), "special_tokens_map.json": spell({"bos_token": "<s>"})}
    said |= {"chat_template.jinja": b"{{ messages[0].content }}"}
    piece = lambda text, kind: b"\n" + bytes([len(text)]) + text + b"\x15\0\0\x80\xbf\x18" + bytes([kind])  # noqa: E731
    rows = [piece(text, kind) for text, kind in ((b"<unk>", 2), (b"<s>", 3), (b"<0x41>", 6), (b"ab", 1))]
    model = b"".join(b"\n" + bytes([len(row)]) + row for row in rows) + b"\x12\x02\x18\x02\x1a\x04\x18\x01\x20\x00"
    return [
        {"tokenizer.json": spell(byte_level), **said},
        {"tokenizer.json": spell(fallback), "tokenizer_config.json": said["tokenizer_config.json"]},
        {"tokenizer.model": model, "tokenizer_config.json": said["tokenizer_config.json"]},
    ]


def _adapters() -> bytes:
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none", "use_rslora": False,
            "target_modules": ["q_proj"], "modules_to_save": None}  # fmt: skip
    pair = {"A": np.ones((2, 4), np.float32), "B": np.ones((3, 2), np.float32)}
    tensors = {f"base_model.model.a.q_proj.lora_{letter}.weight": own for letter, own in pair.items()}
    return framed({"adapter_config.json": json.dumps(said).encode(), "adapter_model.safetensors": save(tensors)})


def _saved(save_to, *arrays, **named) -> bytes:
    file = io.BytesIO()
    save_to(file, *arrays, **named)
    return file.getvalue()


def main() -> None:
    """Write what is missing."""
    for reader, contents in seeds().items():
        folder = CORPUS / reader
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(contents):
            assert len(content) <= 64 << 10, reader
            (folder / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
