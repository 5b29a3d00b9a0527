"""Options of `fewbit quantize` alone, each declared once; what other commands have too is in `words.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str | None, typer.Option(help="A preset (w4a16, ...) or a .toml file. Default: w4a16.")]
Weight = Annotated[str | None, typer.Option(help='Scheme of all linear layers instead, e.g. "int4 g64".')]
InputScheme = Annotated[
    str | None, typer.Option("--input", help='Scheme of their inputs, with --weight, e.g. "int8" or "int8 static".')
]
Algorithm = Annotated[
    str | None, typer.Option(help="How codes are found, with --weight: nearest, gptq, hqq, autoround, adaround, brecq.")
]
Keep = Annotated[list[str] | None, typer.Option(help="Layers that stay float; a regular expression.")]
FloatType = Annotated[str, typer.Option(help="Type of floats and scales: auto, float32, float16, bfloat16.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and every problem; do nothing.")]
Seed = Annotated[int, typer.Option(help="Recorded in the report.", min=0)]
SampleCount = Annotated[
    int | None,
    typer.Option(help="What to calibrate with: 32 sequences, 512 samples of files, 64 made images.", min=1),
]
Written = Annotated[
    int, typer.Option(help="Sequences that a language model writes besides what it is calibrated with.", min=0)
]
Imatrix = Annotated[
    Path | None,
    typer.Option(
        help="An importance matrix instead of calibration: a .gguf file of `fewbit imatrix` or llama-imatrix.",
        show_default=False,
    ),
]
Sequential = Annotated[
    bool,
    typer.Option(help="Calibrate the layers of a block one after the other; all at once takes longer and less memory."),
]
TargetBits = Annotated[
    float | None, typer.Option(help="Choose schemes by layer: stored bits of a weight on average.", min=0.1)
]
TargetSize = Annotated[
    str | None, typer.Option(help="Choose schemes by layer under a size of all tensors, such as 300MB.")
]
TargetDivergence = Annotated[
    float | None,
    typer.Option(
        help="Choose schemes by layer: the smallest model that diverges at most so far, in nats a token.", min=0.0
    ),
]
TargetLatency = Annotated[str | None, typer.Option(help="Choose schemes by layer under a time of a run, such as 20ms.")]
Equal = Annotated[str, typer.Option(help="Layers that get the same, with --target-...: auto, inputs, blocks, none.")]
Rounds = Annotated[
    int | None, typer.Option(help="How many models are quantized and measured in the search, default 3.", min=0)
]
Runtime = Annotated[
    str | None,
    typer.Option(help="Runtime that an .onnx output is for: ort-cpu (default), tensorrt, migraphx, openvino."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Read a folder block by block within this much memory, such as 8GB; it writes no text of its own.",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Read a folder block by block, and go on with what OUT.partial holds, if anything."),
]
Part = Annotated[
    int, typer.Option(help="Calibration batches whose statistics are summed apart; workers share parts.", min=1)
]
