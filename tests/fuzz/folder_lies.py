"""Lies in quantized folders: each takes a generator and files, and makes them contradict themselves in one place.

Whatever else the lie does not need stays in order, so a reader that passes over it accepts the folder: a finding.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from genuine_checkpoints import INDEX, ONE, Files
from safetensors_text import closed, indexed, opened, repacked, tensors_in

Lie = Callable[[random.Random, Files], Files]
#: What quantized weights are made of, and the types of NumPy by those of the file.
PARTS = (
    "qweight", "qzeros", "scales", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape",
    "weight_global_scale", "input_scale", "input_zero_point", "input_global_scale", "k_scale", "v_scale",
    "k_zero_point", "v_zero_point",
)  # fmt: skip
SCALES = (
    "scales", "weight_scale", "weight_global_scale", "input_scale", "input_global_scale", "k_scale", "v_scale",
)  # fmt: skip
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}
_OTHER = {"F32": "I32", "F16": "I16", "BF16": "F16", "I32": "F32", "I64": "F64", "I8": "U8", "U8": "I8",
          "F8_E4M3": "F8_E5M2"}  # fmt: skip
PATHS = ("../{}", "/{}", "a/../../{}", "..\\{}", "C:/{}", "~/{}", "", "{}\0", "{}\n", "x" * 2000)
#: Words of which none stands for a whole number, a flag or a name that a configuration needs.
WRONG = (-1, 0, -(2**63), 2**31, 2**63, 2**64 + 1, 10**300, 1e300, 0.5, float("nan"), float("inf"), "4", "", [], [4],
         {}, {"bits": 4})  # fmt: skip


def _file(rng: random.Random, files: Files) -> str:
    return rng.choice([name for name in files if name.endswith(".safetensors")])


def _of_file(change: Callable[[random.Random, bytes], bytes]) -> Lie:
    """Return the lie that changes the bytes of one weight file."""

    def lie(rng: random.Random, files: Files) -> Files:
        name = _file(rng, files)
        return {**files, name: change(rng, files[name])}

    return lie


def _of_header(change: Callable[[random.Random, dict[str, Any], str], Any]) -> Lie:
    """Return the lie that changes what a header says of one tensor; the data stay as they are."""

    def changed(rng: random.Random, content: bytes) -> bytes:
        header, data = opened(content)
        name = rng.choice([own for own in header if own != "__metadata__"])
        made = change(rng, header, name)
        return closed(header if made is None else made, data)

    return _of_file(changed)


def _of_part(change: Callable[[random.Random, dict[str, list[Any]], str], Any], among: tuple[str, ...] = PARTS) -> Lie:
    """Return the lie that changes a part of a quantized weight in a file that is in order otherwise."""

    def lie(rng: random.Random, files: Files) -> Files:
        tables = {name: tensors_in(content) for name, content in files.items() if name.endswith(".safetensors")}
        known = [(file, own) for file, table in tables.items() for own in table if own.rpartition(".")[2] in among]
        if not known:  # a cast has no parts
            return closed_off(rng, files)
        file, name = rng.choice(known)
        change(rng, tables[file], name)
        placed = {**files, file: repacked(tables[file])}
        return placed if INDEX not in files else indexed(placed)

    return lie


# Of the bytes of a weight file.


def closed_off(rng: random.Random, files: Files) -> Files:
    """Cut the end off a weight file, as a download does that stopped."""
    name = _file(rng, files)
    return {**files, name: files[name][: rng.randrange(len(files[name]))]}


def _header_length(rng: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    wrong = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, len(content)])
    return struct.pack("<Q", wrong) + content[8:]


# Of a header.


def _overflowing(rng: random.Random, header: dict[str, Any], name: str) -> None:
    """A shape whose product is the true one modulo 2^64, or far beyond any file."""
    shape = header[name]["shape"]
    header[name]["shape"] = rng.choice(
        [[*shape, 2**64 + 1], [2**32, 2**32, *shape], [2**63, 2, *shape], [shape[0] + 2**64, *shape[1:]], [2**62, 4]]
    )


def _resized(rng: random.Random, header: dict[str, Any], name: str) -> None:
    shape = header[name]["shape"]
    axis, old = rng.randrange(len(shape)), shape[:]
    shape[axis] = rng.choice([0, -shape[axis], shape[axis] + 1, 2 * shape[axis], 2**40, -1])
    assert shape != old


def _offset_outside(rng: random.Random, header: dict[str, Any], name: str) -> None:
    offsets = header[name]["data_offsets"]
    by = rng.choice([1, 8, 4096, 2**31, 2**32, 2**62, 2**63, 2**64, -1, -8, -(2**63)])
    for place in rng.choice([(0,), (1,), (0, 1)]):
        offsets[place] += by


def _turned(rng: random.Random, header: dict[str, Any], name: str) -> None:
    header[name]["data_offsets"].reverse()


def _over_another(rng: random.Random, header: dict[str, Any], name: str) -> None:
    header[f"{name}.again"] = json.loads(json.dumps(header[name]))


def _twice(rng: random.Random, header: dict[str, Any], name: str) -> str:
    return f"{json.dumps(header)[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}"


def _renamed_to_path(rng: random.Random, header: dict[str, Any], name: str) -> None:
    header[rng.choice(PATHS).format(name)] = header.pop(name)


def _mistyped(rng: random.Random, header: dict[str, Any], name: str) -> None:
    key = rng.choice(["dtype", "shape", "data_offsets", None])
    wrong = rng.choice([None, True, 1, "F31", "f32", [0], {}, [[8]], ["8"], [1.0, 2.0], -1, [None, None], [0] * 40])
    if key is None:
        header[name] = wrong
    else:
        header[name][key] = wrong


def _nested(rng: random.Random, header: dict[str, Any], name: str) -> str:
    depth = rng.choice([70, 2000, 20_000])
    return f'{json.dumps(header)[:-1]}, "x": {"[" * depth}{"]" * depth}}}'


# Of the parts of a weight.


def _dropped(rng: random.Random, tensors: dict[str, list[Any]], name: str) -> None:
    del tensors[name]


def _orphaned(rng: random.Random, tensors: dict[str, list[Any]], name: str) -> None:
    tensors[f"elsewhere.{name.rpartition('.')[2]}"] = tensors.pop(name)


def _shortened(rng: random.Random, tensors: dict[str, list[Any]], name: str) -> None:
    """Leave whole rows out; all of them where that is what a count says."""
    kind, shape, content = tensors[name]
    rows = rng.choice([0, shape[0] - 1, shape[0] // 2])
    tensors[name] = [kind, [rows, *shape[1:]], content[: len(content) // shape[0] * rows]]


def _lengthened(rng: random.Random, tensors: dict[str, list[Any]], name: str) -> None:
    kind, shape, content = tensors[name]
    tensors[name] = [kind, [2 * shape[0], *shape[1:]], content * 2]


def _another_type(rng: random.Random, tensors: dict[str, list[Any]], name: str) -> None:
    tensors[name][0] = _OTHER[tensors[name][0]]


def _no_number(rng: random.Random, tensors: dict[str, list[Any]], name: str) -> None:
    """Put NaN or infinity among the scales, and the bytes of NaN where scales are powers of two."""
    kind, _, content = tensors[name]
    if kind == "U8":
        numbers, wrong = np.frombuffer(content, np.uint8).copy(), 255
    else:
        numbers = np.frombuffer(content, _TYPES[kind]).copy()
        wrong = float("nan") if kind == "F8_E4M3" else rng.choice([float("nan"), float("inf"), float("-inf")])
    numbers[rng.randrange(len(numbers))] = wrong
    tensors[name][2] = numbers.tobytes()


def _absurd_shape(rng: random.Random, tensors: dict[str, list[Any]], name: str) -> None:
    wrong = rng.choice([(0, 64), (32, 0), (-32, 64), (2**62, 2**62), (2**40, 64), (64, 32), (2**32 + 32, 64), (32, 0)])
    tensors[name][2] = np.asarray(wrong, np.int64).tobytes()


def _stray_index(rng: random.Random, tensors: dict[str, list[Any]], name: str) -> None:
    numbers = np.frombuffer(tensors[name][2], np.int32).copy()
    numbers[rng.randrange(len(numbers))] = rng.choice([-1, -(2**31), 2**31 - 1, 99])
    tensors[name][2] = numbers.tobytes()


# Of the configuration and of the index.


def _configured(rng: random.Random, files: Files) -> Files:
    """Take the words out of which a reader works out what the numbers mean, or put others there."""
    configuration = json.loads(files["config.json"])
    table = configuration.get("quantization_config")
    if table is None:
        configuration["fewbit_casts"][0]["layers"] = rng.choice([["nowhere"], ["0", "0"], "0", None, [0], {}])
    elif "config_groups" in table:
        group = next(iter(table["config_groups"].values()))
        key = rng.choice(["num_bits", "strategy", "symmetric"])
        # A tensor's scale is not told from a scheme that says so; all else contradicts the tensors.
        group["weights"][key] = rng.choice([own for own in WRONG if own != group["weights"][key]])
    else:
        key = rng.choice(["bits", "group_size", *(["sym"] if table["quant_method"] == "gptq" else [])])
        wrong = [own for own in WRONG if own != -1 and own != table[key]]
        table[key] = rng.choice([*wrong, 5] if key == "bits" else wrong)
        for change in table.get("dynamic", {}).values():
            change.pop(key, None)
    return {**files, "config.json": json.dumps(configuration).encode()}


def _no_configuration(rng: random.Random, files: Files) -> Files:
    content = files["config.json"]
    twice = content[:-1] + b', "quantization_config": {}}'
    cut = content[: rng.randrange(len(content))]
    broken = rng.choice([cut, twice, b"[]", b"1", b'{"a": ' * 3000, content + b"x", b"\xff", b"{}", b'{"dtype": 4}'])
    return {**files, "config.json": broken}


def _index_lie(rng: random.Random, files: Files) -> Files:
    """Point the index at itself, out of the folder, at what is not there, or at the wrong file."""
    placed = json.loads(files[INDEX])["weight_map"] if INDEX in files else dict.fromkeys(tensors_in(files[ONE]), ONE)
    name = rng.choice(list(placed))
    what = rng.randrange(4)
    if what == 0:
        wrong = [INDEX, "../" + placed[name], "/etc/passwd", f"./{placed[name]}", ".", "..", "", "config.json",
                 "a/b.safetensors", "..\\m.safetensors", "absent.safetensors", None, 1, [placed[name]], {},
                 f".{placed[name]}", f"{placed[name]}\0.safetensors", "x" * 300 + ".safetensors"]  # fmt: skip
        placed[name] = rng.choice(wrong)
    elif what == 1:
        placed[f"{name}.absent"] = placed[name]
    elif what == 2:
        del placed[name]
    whole: Any = rng.choice([[], None, {}, 1, "x", list(placed)]) if what == 3 else placed
    return {**files, INDEX: json.dumps({"weight_map": whole}).encode()}


LIES: dict[str, Lie] = {
    "truncated": closed_off,
    "surplus bytes": _of_file(lambda rng, content: content + rng.randbytes(rng.choice([1, 8, 64]))),
    "length of the header": _of_file(_header_length),
    "product beyond 64 bits": _of_header(_overflowing),
    "another size": _of_header(_resized),
    "offset outside": _of_header(_offset_outside),
    "offsets turned": _of_header(_turned),
    "two tensors on the same bytes": _of_header(_over_another),
    "a name twice": _of_header(_twice),
    "a name that is a path": _of_header(_renamed_to_path),
    "wrong types": _of_header(_mistyped),
    "a nested header": _of_header(_nested),
    "a part missing": _of_part(_dropped),
    "a part of no weight": _of_part(_orphaned),
    "a part too short": _of_part(_shortened),
    "a part too long": _of_part(_lengthened),
    "a part of another type": _of_part(_another_type),
    "a scale that is no number": _of_part(_no_number, SCALES),
    "a shape that is none": _of_part(_absurd_shape, ("weight_shape",)),
    "a group that is not there": _of_part(_stray_index, ("g_idx",)),
    "words of the configuration": _configured,
    "no configuration": _no_configuration,
    "the index": _index_lie,
}
