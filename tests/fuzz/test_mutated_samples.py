"""Mutated `.npz` and `.npy` files: every one is read to the shapes that were asked for, or refused by a named error."""

import io
import random

import numpy as np
import pytest

import fewbit as fb
from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.samples.model_input import ModelInput

INPUTS = [ModelInput("x", np.dtype("float32"), ("n", 4)), ModelInput("ids", np.dtype("int64"), ("n",))]
X = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
CASES = 1000


def content(save, *arrays, **named):
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


KINDS = {
    "npz": (content(np.savez, x=X, ids=np.arange(10), labels=np.arange(10)), INPUTS),
    "packed.npz": (content(np.savez_compressed, x=X, ids=np.arange(10), labels=np.arange(10)), INPUTS),
    "npy": (content(np.save, X), INPUTS[:1]),
}


def mutated(rng, genuine):
    """Bytes changed, flipped, taken out and put in, at most of the places where it matters: headers are dense."""
    changed = bytearray(genuine)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(max(1, len(changed)))
        how = rng.randrange(4)
        if how == 0 and changed:
            changed[place] = rng.randrange(256)
        elif how == 1 and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif how == 2:
            del changed[place : place + rng.randrange(1, 40)]
        else:
            changed[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_every_mutated_file_is_read_or_refused(tmp_path, kind):
    genuine, inputs = KINDS[kind]
    rng, read, refused = random.Random(0), 0, set()
    path = tmp_path / f"data.{kind}"
    for _ in range(CASES):
        path.write_bytes(mutated(rng, genuine))
        try:
            batches = fb.Samples(path, batch_size=3).open(inputs).batches
            for batch in batches:
                x = batch["x"] if isinstance(batch, dict) else batch
                assert x.dtype == np.float32
                assert x.shape[1:] == (4,)
            read += 1
        except (CalibrationError, NonFiniteError) as error:
            refused.add(str(error))
    # Of a kind that tests something: some get through, and they are refused for many reasons.
    assert read > CASES // 50
    assert len({error.replace(str(path), "")[:40] for error in refused}) > 5
    assert all(str(path) in error for error in refused)
