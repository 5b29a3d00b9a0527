"""Networks trained with rounding in the loop as ONNX files: what onnxruntime predicts beside what torch does."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import fewbit as fb
from recovery_images import EPOCHS, MODELS, RANGE_RATE, fashion_data, float_model, trained

#: Runtimes whose files onnxruntime runs, with the biases that they want. Of float ones its optimizer makes int32.
RUNTIMES = {"ort-cpu": "int32", "tensorrt": "float"}


def files_part(given: argparse.Namespace) -> None:
    """Agreement of predictions on the test images."""
    data = fashion_data(given)
    print("\n| model | file for | accuracy in torch, % | in onnxruntime, % | same predictions, % |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name in given.models:
        for runtime, bias in RUNTIMES.items():
            model = float_model(name, 0, data)
            torch.manual_seed(0)
            fb.prepare_qat(model, recipe(model, bias), to=runtime, batch=data.train[0][:1024])
            result = fb.finish_qat(trained(model, data, EPOCHS / 10, (MODELS[name].tuned_rate, RANGE_RATE)))
            images, labels = data.test
            with torch.no_grad():
                here = torch.cat([result.model(part).argmax(1) for part in images.split(500)]).numpy()
            with tempfile.TemporaryDirectory() as folder:
                there = predictions(result.save(Path(folder) / "m.onnx", runtime=runtime), images)
            right = [100 * float(np.mean(own == labels.numpy())) for own in (here, there)]
            same = 100 * float(np.mean(here == there))
            print(f"| {name} | {runtime} | {right[0]:.2f} | {right[1]:.2f} | {same:.2f} |", flush=True)


def recipe(model: Any, bias: str) -> fb.Recipe:
    given = "int8 tensor asym static" if bias == "int32" else "int8 tensor sym static"
    rules = [
        fb.Rule(kind=kind, weight="int8 narrow channel", input=given, bias=bias, optional=True)
        for kind in ("conv", "linear")
    ]
    return fb.Recipe(rules, transforms=model.transforms)


def predictions(path: Path, images: torch.Tensor) -> Any:
    """Return what onnxruntime says the images are, one by one: a file is traced with a batch of its own."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part.numpy()})[0].argmax(1) for part in images.split(500)])
