"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="A Hugging Face folder, a .gguf or .onnx file, smollm2 or smollm2-rotated.", show_default=False
    ),
]
Text = Annotated[
    str | None,
    typer.Option(help="Text to measure quality on; `none` measures nothing. Default: Python's own topics."),
]
Sequences = Annotated[int, typer.Option(min=1, help="How many sequences of the text.")]
SequenceLength = Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")]
Device = Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda, ...")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Samples to measure an ONNX model on: an .npz or .npy file, a folder of .npy files or images.",
        show_default=False,
    ),
]
CalibrationData = Annotated[
    str,
    typer.Option(
        help="Data for gptq and static ranges: self (the model writes its own text), a UTF-8 text file, or samples: an "
        ".npz or .npy file, a folder of .npy files or images; synthetic (it makes images for itself); none."
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(help="Channels,height,width of images, for --calibration synthetic or none.", show_default=False),
]
Iterations = Annotated[
    int | None,
    typer.Option(
        min=1, help="Steps in which images are made, for --calibration synthetic. Default: 500.", show_default=False
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Samples of a batch. Default: what the model takes, or 32.", show_default=False),
]
Preprocess = Annotated[
    Path | None, typer.Option(help="What is done to images: a .toml file with size, mean, std, layout, ...")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.", show_default=False)]
ShardSize = Annotated[
    str | None,
    typer.Option(
        help="Most bytes of tensors in a file, such as 2GB; what has more becomes several. Default: one .gguf file, or "
        "1GiB in those of a folder.",
        show_default=False,
    ),
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="Who solves layers and runs calibration: in-process, or ray.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT of a Ray cluster, or auto, for --executor ray; without it workers are started here.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many, for --executor ray. Default: one a GPU, else as many as have cores.", show_default=False
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing model folder.")]
CandidateList = Annotated[
    str | None,
    typer.Option(
        help='What layers may become, with --target-...: "int3 g64,int4 g64,int8 g64", GGUF types, float.',
        show_default=False,
    ),
]
Cache = Annotated[
    Path | None, typer.Option(help="Folder or .json file in which scores of layers are kept.", show_default=False)
]
Layout = Annotated[str | None, typer.Option(help="Layout of the output. Default: compressed-tensors.")]
CalibrationLength = Annotated[
    int | None, typer.Option(help="Tokens of each; default: 256 of its own text, 512 of a file.", min=2)
]
