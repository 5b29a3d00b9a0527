"""A run so small that it can be killed hundreds of times; as a program, one that kills it in forked children.

A line of JSON on standard input asks for a run and where to kill it; a line on standard output is its exit code.
The process forks with everything imported and nothing run: OpenMP, once it has threads, would not survive a fork.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

import fewbit as fb

sys.path.insert(0, str(Path(__file__).parent))
from faults import killing, points

RECIPE = fb.Recipe(
    [fb.keep(kind="head"), fb.keep(kind="embedding"), fb.Rule(kind="linear", weight="int4 g16 clip")], name="tiny"
)
BATCHES = [torch.arange(start, start + 12)[None] for start in (0, 9)]


def quantize(model, output, recipe=RECIPE, **options):
    """Carry the run out, in files of a few tensors each."""
    settings = {"to": "gptq", "shard_size": "4KB", "calibration": BATCHES} | options
    return fb.quantize_folder(model, output, recipe, **settings)


def _killed(model: str, output: str, point: int, options: dict) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with points(killing(point)):
                quantize(model, output, **options)
            code = 0
        except BaseException as error:  # the child must not go on as its parent
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    import transformers

    from fewbit import folder_run, streamed_run, streaming  # noqa: F401
    from fewbit.checkpoints import gptq  # noqa: F401
    from fewbit.frontends.torch import frontend  # noqa: F401
    from fewbit.report import page  # noqa: F401

    transformers.LlamaForCausalLM  # noqa: B018  # imported when it is asked for
    torch.set_num_threads(1)
    for line in sys.stdin:
        _killed(**json.loads(line))
