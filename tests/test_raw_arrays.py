"""Arrays in a file: what comes back is what was written, or an error says that it is not."""

import json

import ml_dtypes
import numpy as np
import pytest

from fewbit.errors import CheckpointError
from fewbit.raw_arrays import RawArrays, write_arrays

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asarray(7, np.int64),
    np.zeros((0, 4), np.float16),
    np.asarray([True, False]),
    np.arange(5).astype(ml_dtypes.bfloat16),
    np.arange(12, dtype=np.int32).reshape(3, 4).T,
]


def test_arrays_come_back_as_they_were(tmp_path):
    written = write_arrays(tmp_path / "a.bin", ARRAYS)
    found = RawArrays.of_table(json.loads(json.dumps(written.table())), tmp_path)
    assert len(found) == len(ARRAYS)
    found.require_intact()
    for number, array in enumerate(ARRAYS):
        assert found[number].dtype == array.dtype
        assert found[number].shape == array.shape
        assert found[number].tobytes() == array.tobytes()


def test_a_file_that_ends_early_or_has_changed_is_an_error(tmp_path):
    written = write_arrays(tmp_path / "a.bin", ARRAYS)
    raw = written.path.read_bytes()
    written.path.write_bytes(raw[:20])
    with pytest.raises(CheckpointError, match=r"ends before its 1\. array"):
        written[0]
    written.path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its SHA-256 is another"):
        written.require_intact()
    written.path.unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        written[0]
