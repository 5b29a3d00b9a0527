"""Names of tensors: everything that models are made of is fine, paths and what does not print are not."""

import pytest

from fewbit.checkpoints.tensor_name import LONGEST, require_plain
from fewbit.errors import CheckpointError

FINE = [
    "weight", "model.layers.0.mlp.up_proj.weight", "blk.0.attn_q.weight", "params/encoder/layer_0/kernel", "a b",
    "übung", "层.0", "x..y", "...", "a/.b/c", "C", "re:.*", "1", "a:b", "x" * LONGEST,
]  # fmt: skip
REFUSED = {
    "empty": ("", "empty name"),
    "too long": ("x" * (LONGEST + 1), f"has {LONGEST + 1} characters, more than {LONGEST}"),
    "NUL": ("a\0b", "do not print"),
    "newline": ("a\nb", "do not print"),
    "escape": ("a\x1b[2Jb", "do not print"),
    "right to left": ("a\u202eb", "do not print"),
    "no width": ("a\u200bb", "do not print"),
    "half of a pair": ("a\ud800", "do not print"),
    "absolute": ("/etc/passwd", "reads as a path"),
    "home": ("~/a", "reads as a path"),
    "up": ("../a", "reads as a path"),
    "up in the middle": ("a/../../b", "reads as a path"),
    "only up": ("..", "reads as a path"),
    "backslash": ("a\\b", "reads as a path"),
    "drive": ("C:/a", "reads as a path"),
    "reserved": ("__metadata__", "is reserved"),
}


@pytest.mark.parametrize("name", FINE)
def test_a_name_of_a_model_is_fine(name):
    require_plain(name)


@pytest.mark.parametrize("case", REFUSED)
def test_a_dangerous_name_is_refused_in_words_that_print(case):
    name, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        require_plain(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
