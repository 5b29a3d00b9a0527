"""Fashion-MNIST with few bits: what rounding loses, and what recovery and training give back; means over seeds."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import fewbit as fb
import small_images
from fewbit.training.distillation import Distillation
from fewbit.training.gradients import GRADIENTS
from small_images import accuracy, images

CACHE = Path(__file__).resolve().parent / "cache"
#: Epochs of the float models; training with rounding takes a tenth.
EPOCHS = 5
BATCH = 128
#: The step of training from which norms keep their averages: the weights are rounded as folded with these.
FREEZE_NORMS = 0
#: Of learned ranges, as a share of what they are.
RANGE_RATE = 2e-2


class Cnn(small_images.Cnn):
    """Two of its convolutions are depthwise."""

    first, last = "0", "17"
    rate, tuned_rate = 1e-2, 5e-3
    transforms = ("batchnorm",)

    def __init__(self) -> None:
        super().__init__((1, 32, 2, 1), (32, 32, 1, 32), (32, 48, 1, 1), (48, 48, 2, 48), (48, 96, 1, 1))


class Vit(small_images.Vit):
    """A small one."""

    first, last = "patches", "head"
    rate, tuned_rate = 3e-3, 1e-3
    transforms = ()

    def __init__(self) -> None:
        super().__init__(width=48, depth=3, patch=7)


MODELS: dict[str, Any] = {"CNN": Cnn, "ViT": Vit}
#: By name bits of weights and inputs, and whether the first and last layer have 8 of both.
SETTINGS = {"w8a8": (8, 8, False), "w4a8": (4, 8, False), "w4a4": (4, 4, True), "w2a4": (2, 4, True)}
#: Where there is little to repair, what share of the rates of training, those of ranges too.
RATE_SHARES = {"w8a8": 0.1, "w4a8": 0.1}


@dataclass(frozen=True)
class Method:
    """A way from a float model to a rounded one."""

    name: str
    algorithm: Any = "nearest"
    transforms: tuple[Any, ...] = ()
    corrections: tuple[Any, ...] = ()
    #: Keep BatchNorms as they are, for methods that work on them.
    norms: bool = False
    #: Trained with rounding in the loop.
    gradient: str | None = None
    distilled: bool = False
    #: The only model that it has something to do in.
    only: str | None = None

    def recipe(self, model: Any, setting: str) -> fb.Recipe:
        """Return what becomes of the layers of `model`."""
        weight, given, outer = SETTINGS[setting]
        inputs = "int{} tensor asym static" + ("" if self.gradient else " mse")
        algorithm = "nearest" if self.gradient else self.algorithm
        ranged = " mse" if weight < 8 and not self.gradient else ""
        rules = []
        if outer:
            ends = "|".join((model.first, model.last))
            rules.append(fb.Rule(ends, weight="int8 channel", input=inputs.format(8), algorithm=algorithm))
        rules += [
            fb.Rule(
                kind=kind,
                weight=f"int{weight} channel{ranged}",
                input=inputs.format(given),
                algorithm=algorithm,
                optional=True,
            )
            for kind in ("conv", "linear")
        ]
        folding = () if self.norms else model.transforms
        return fb.Recipe(rules, transforms=(*folding, *self.transforms), corrections=self.corrections)


#: Bias correction without data.
BY_NORMS = {"name": "bias", "means": "batchnorm"}
AFTER = [
    Method("nearest"),
    Method("bias correction", corrections=("bias",)),
    Method("bias correction by BatchNorms", corrections=(BY_NORMS,), only="CNN"),
    Method("equalization, absorption", transforms=("equalization", "high-bias-absorption"), only="CNN"),
    Method("norms re-estimated", corrections=("batchnorm",), norms=True, only="CNN"),
    Method("outlier splitting", transforms=("outlier-splitting",)),
    Method("GPTQ", "gptq"),
    Method("GPTQ, asymmetric", {"name": "gptq", "asymmetric": True}),
    Method("AdaRound", {"name": "adaround", "asymmetric": True}),
    Method("AdaRound, bias correction", {"name": "adaround", "asymmetric": True}, corrections=("bias",)),
    Method("AdaRound, for inputs at hand", {"name": "adaround", "asymmetric": False}),
    Method(
        "AdaRound, for inputs at hand, bias correction",
        {"name": "adaround", "asymmetric": False},
        corrections=("bias",),
    ),
    Method("BRECQ", "brecq"),
]
TRAINED = [
    Method(f"trained, {name}{', distilled' if distilled else ''}", gradient=name, distilled=distilled)
    for distilled in (False, True)
    for name in GRADIENTS
]


@dataclass(frozen=True)
class Data:
    """Images (count, 1, 28, 28) and labels."""

    train: tuple[Tensor, Tensor] = field(repr=False)
    test: tuple[Tensor, Tensor] = field(repr=False)

    @property
    def calibration(self) -> list[Tensor]:
        """512 of the images that models are trained on."""
        return list(self.train[0][:512].split(128))


@torch.enable_grad()
def trained(model: Any, data: Data, epochs: float, rates: tuple[float, float], teacher: Any = None) -> Any:
    """Train with AdamW under one cycle of the `rates`, of weights and ranges, behind `teacher` if there is one."""
    x, labels = data.train
    steps = round(epochs * (len(x) // BATCH))
    optimizer = torch.optim.AdamW(fb.parameter_groups(model, rates[0], range_rate=rates[1], weight_decay=0.02))
    highest = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, steps)
    distillation = Distillation(teacher, temperature=2.0) if teacher is not None else None
    model.train()
    order = torch.cat([torch.randperm(len(x)) for _ in range(int(epochs) + 1)])
    for own in order[: steps * BATCH].split(BATCH):
        given = x[own].flip(3) if torch.rand(()) < 0.5 else x[own]
        optimizer.zero_grad()
        found = model(given)
        loss = functional.cross_entropy(found, labels[own])
        (distillation(found, given, loss) if distillation else loss).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def float_model(name: str, seed: int, data: Data) -> Any:
    """Return the model trained from a seed, from the cache where it was trained before."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    path = CACHE / f"fashion-{name}-{digest(str(model), seed, model.rate, EPOCHS, BATCH)}.safetensors"
    if not path.exists():
        trained(model, data, EPOCHS, (model.rate, RANGE_RATE))
        partial_path = path.with_suffix(".partial")
        save_file(model.state_dict(), partial_path)
        partial_path.rename(path)
    model.load_state_dict(load_file(path))
    return model.eval()


def rates_of(model: Any, setting: str) -> tuple[float, float]:
    """Return the rates of weights and of ranges, these in shares of what each range is."""
    share = RATE_SHARES.get(setting, 1.0)
    return model.tuned_rate * share, RANGE_RATE * share


def rounded(model: Any, method: Method, setting: str, data: Data) -> Any:
    """Return `model` as the method rounds it; it is changed in place."""
    recipe = method.recipe(model, setting)
    if method.gradient is None:
        return fb.quantize(model, recipe, calibration=data.calibration).model
    teacher = copy.deepcopy(model) if method.distilled else None
    training = fb.Training(gradient=method.gradient, freeze_norms=FREEZE_NORMS)
    prepared = fb.prepare_qat(model, recipe, training=training, batch=data.train[0][:256])
    return fb.finish_qat(trained(prepared, data, EPOCHS / 10, rates_of(model, setting), teacher)).model


@dataclass(frozen=True)
class Bench:
    """The data, and what has been measured on it."""

    data: Data
    #: Measure again what was measured before.
    fresh: bool = False

    def measured(self, name: str, seed: int, setting: str, method: Method | None) -> Mapping[str, float]:
        """Return accuracy (percent) and seconds, of the float model without a method."""
        own = MODELS[name]()
        trained = method is not None and method.gradient
        rates = rates_of(own, setting if trained else "")
        key = [str(own), seed, setting, repr(method), own.rate, rates[0], EPOCHS, BATCH, rates[1], FREEZE_NORMS]
        path = CACHE / f"recovery-{digest(*key)}.json"
        if self.fresh or not path.exists():
            model = float_model(name, seed, self.data)
            torch.manual_seed(seed)
            started = time.process_time()
            model = model if method is None else rounded(model, method, setting, self.data)
            seconds = time.process_time() - started
            partial_path = path.with_suffix(".partial")
            found = {"accuracy": accuracy(model, *self.data.test), "seconds": seconds}
            partial_path.write_text(json.dumps(found))
            partial_path.rename(path)
        return json.loads(path.read_text())


def fashion_data(given: argparse.Namespace) -> Data:
    """Return the images of the folder that the command line names."""
    folder = given.fashion
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder; install Debian's dataset-fashion-mnist or give --fashion FOLDER")
    CACHE.mkdir(exist_ok=True)
    return Data(images(folder, "train"), images(folder, "t10k"))


def fashion_part(given: argparse.Namespace) -> None:
    """Accuracy on Fashion-MNIST, points lost to the float model, and CPU seconds, the mean over the settings."""
    bench = Bench(fashion_data(given), given.fresh)
    for name in given.models:
        before = [bench.measured(name, seed, "", None)["accuracy"] for seed in range(given.seeds)]
        print(f"\n{name}, float accuracy {fmean(before):.2f} %, {given.seeds} seeds; change in points\n")
        print(f"| method | {' | '.join(given.settings)} | CPU s |\n| --- |{' ---: |' * (len(given.settings) + 1)}")
        for method in [own for own in (*AFTER, *TRAINED) if own.only in (None, name)]:
            if not re.search(given.methods, method.name):
                continue
            rows = {
                setting: [bench.measured(name, seed, setting, method) for seed in range(given.seeds)]
                for setting in given.settings
            }
            cells = [f"{fmean(own['accuracy'] for own in row) - fmean(before):+.2f}" for row in rows.values()]
            seconds = fmean(own["seconds"] for row in rows.values() for own in row)
            print(f"| {method.name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
