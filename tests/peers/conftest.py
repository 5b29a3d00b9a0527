"""What tests of several runtimes use; programs that they start with another interpreter import what that one has."""

import numpy as np
import pytest

from fewbit.checkpoints.gguf_header import read_gguf_header

collect_ignore = ["gptqmodel_logits.py", "ik_llama.py"]


@pytest.fixture(scope="session")
def with_rows_of_halves():
    """Copy a GGUF file with the rows of every K in the order of transformers: the usual mistake."""

    def wrong(path, heads):
        content = bytearray(path.read_bytes())
        header = read_gguf_header(path)
        for tensor in header.tensors:
            if not tensor.name.endswith("attn_k.weight"):
                continue
            start = header.data_start + tensor.offset
            rows = np.frombuffer(content, np.uint8, tensor.nbytes, start).reshape(
                heads, -1, 2, tensor.nbytes // tensor.shape[0]
            )
            content[start : start + tensor.nbytes] = rows.swapaxes(1, 2).tobytes()
        other = path.with_name("wrong.gguf")
        other.write_bytes(content)
        return other

    return wrong
