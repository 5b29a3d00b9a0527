"""Images that a module makes for its own calibration."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.interfaces import Silent
from fewbit.synthetic.generator import Generator
from fewbit.synthetic.image_form import ImageForm
from fewbit.synthetic.norm_inputs import NormInputs, distance, moments, norms_of, remembered
from fewbit.synthetic.options import METHODS
from fewbit.synthetic.patch_similarity import differential_entropy, patch_entropy, total_variation

#: Of the images of both networks.
SHAPE = (2, 12, 12)
#: What is enough to see a direction.
FEW = {"shape": SHAPE, "samples": 24, "batch_size": 16, "iterations": 60}


@torch.no_grad()
def accuracy(model, data):
    images, labels = data
    return float((model(images).argmax(1) == labels).float().mean())


@torch.no_grad()
def norm_distance(model, images):
    """Return how far the statistics of images are from those of the norms, in all norms."""
    with NormInputs(norms_of(model)) as inputs:
        model(images)
        return float(sum(distance(values, *remembered(norm)) for norm, values in inputs.seen))


# Images from BatchNorm statistics.


def test_distilled_images_are_nearer_to_what_norms_remember_than_noise(network):
    noise = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(3))
    made = torch.cat(list(fb.Synthetic(**FEW).images(network)))
    assert made.shape == (24, *SHAPE)
    assert norm_distance(network, made) < 0.1 * norm_distance(network, noise)


def test_statistics_may_be_those_of_each_image(network):
    def far(images):
        with NormInputs(norms_of(network)) as inputs, torch.no_grad():
            network(images)
            return float(sum(distance(values, *remembered(norm), per_sample=True) for norm, values in inputs.seen))

    together, apart = (torch.cat(list(fb.Synthetic(**FEW, per_sample=each).images(network))) for each in (False, True))
    assert far(apart) < 0.1 * far(together)


def test_the_loss_is_the_distance_of_the_images_that_come_out(network):
    found = fb.Synthetic(**{**FEW, "samples": 16}).images(network)
    own = distance(found[0], torch.zeros(2), torch.ones(2))
    # Sums of another order.
    assert found.losses[1] == pytest.approx(norm_distance(network, found[0]) + float(own), rel=1e-4)
    assert found.losses[1] < 0.1 * found.losses[0]
    assert found.labels == ()
    assert str(found).startswith("16 synthetic images of 2x12x12 (zeroq), 60 steps, loss ")


def test_ranges_from_distilled_images_keep_what_ranges_from_noise_lose(network, real):
    recipe = fb.Recipe(
        [fb.Rule(kind=kind, weight="int8 channel", input="int8 tensor asym static") for kind in ("conv", "linear")],
        transforms=["batchnorm"],
    )

    def quantized(calibration):
        result = fb.quantize(copy.deepcopy(network), recipe, calibration=calibration)
        with torch.no_grad():
            wanted, got = network(real[0]), result.model(real[0])
        noise = (got - wanted).square().sum()
        return accuracy(result.model, real), float(10 * torch.log10(wanted.square().sum() / noise))

    on_data = quantized(list(real[0][:128].split(32)))
    on_images = quantized(fb.Synthetic(**FEW))
    on_noise = quantized([torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(3))])
    # One image in a hundred may lie on the border of two classes; 6 dB are a bit.
    assert on_images[0] >= on_data[0] - 0.01
    assert on_noise[1] + 6 < on_images[1] < on_data[1]


@pytest.mark.parametrize("method", ["zeroq", "batchnorm"])
def test_rows_of_numbers_are_images_of_one_axis(method):
    torch.manual_seed(0)
    layers = [nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(16, 3))
    rows = torch.randn(64, 20)
    for _ in range(30):
        model(rows)
    wanted = model.eval()(rows).detach()
    given = fb.Synthetic(method=method, shape=(20,), samples=32, iterations=50)
    with torch.no_grad():
        noise = (fb.quantize(model, "w8a8-static", calibration=given).model(rows) - wanted).square().sum()
    # 8 bits leave 35 dB where ranges fit.
    assert float(10 * torch.log10(wanted.square().sum() / noise)) > 25


def test_values_stay_inside_of_the_range_that_is_given(network):
    for method in ("zeroq", "generator"):
        found = fb.Synthetic(**{**FEW, "iterations": 20}, method=method, values=(-1, 2)).images(network)
        low, high = (float(end) for end in torch.cat(list(found)).aminmax())
        assert -1 <= low < high <= 2


def test_a_preprocessing_gives_shape_and_range():
    own = fb.Preprocessing(size=(6, 8), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    form = ImageForm.of(nn.Identity(), fb.Synthetic(preprocessing=own))
    assert form.shape == (3, 6, 8)
    assert (form.low.flatten().tolist(), form.high.flatten().tolist()) == ([-1, -1, 0], [1, 3, 1])
    # Noise ends at the bounds.
    noise = form.noise(torch.Generator().manual_seed(0), 4)
    assert bool((noise >= form.low).all() & (noise <= form.high).all())


@pytest.mark.parametrize(
    "declares",
    [{"pretrained_cfg": {"input_size": (3, 32, 40)}}, {"default_cfg": {"input_size": [3, 32, 40]}},
     {"config": type("Config", (), {"image_size": (32, 40), "num_channels": 3})()}],
)  # fmt: skip
def test_a_model_may_say_its_shape_itself(declares):
    model = nn.Identity()
    for name, value in declares.items():
        setattr(model, name, value)
    assert ImageForm.of(model, fb.Synthetic()).shape == (3, 32, 40)


def test_moments_are_by_batch_or_by_sample_where_a_channel_has_several_positions():
    values = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for axes, each in (((2, 3), True), ((0, 2, 3), False)):
        mean, deviation = moments(values, per_sample=each)
        assert torch.allclose(mean, values.mean(axes), atol=1e-6)
        assert torch.allclose(deviation, (values.var(axes, correction=0) + 1e-6).sqrt())
    mean, deviation = moments(values[:, :, 0, 0], per_sample=True)
    assert torch.allclose(mean, values[:, :, 0, 0].mean(0)[None])
    assert deviation.shape == (1, 3)


def test_a_rate_that_has_run_out_ends_the_work(network, monkeypatch):
    monkeypatch.setattr("fewbit.synthetic.zeroq._PATIENCE", 0)
    found = fb.Synthetic(**{**FEW, "samples": 2, "iterations": 400}).images(network)
    assert 4 < found.iterations < 400


# A generator.


def test_a_generator_makes_images_with_the_labels_that_the_classifier_gives(network):
    given = fb.Synthetic(**{**FEW, "samples": 64, "iterations": 240}, method="generator", values=(-2, 2))
    found = given.images(network)
    images, labels = torch.cat(list(found)), torch.cat(found.labels)
    assert labels.dtype == torch.int64
    assert len(labels.unique()) > 5
    right = int((network(images).argmax(1) == labels).sum())
    assert right > 24  # by chance 6
    assert found.notes == (f"the model gives {right} of them the label that they were made for",)
    assert found.losses[1] < found.losses[0]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 30, 45), (2, 64, 5)])
def test_a_generator_makes_any_shape(shape):
    form = ImageForm(shape, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    assert Generator(form, 4)(torch.randn(2, 100), torch.tensor([0, 3])).shape == (2, *shape)


def test_classes_may_be_fewer_than_outputs(network):
    given = fb.Synthetic(**{**FEW, "iterations": 2}, method="generator", classes=3)
    assert int(torch.cat(given.images(network).labels).max()) <= 2


# Patch similarity.


def test_moved_images_have_patches_of_more_entropy(transformer):
    found = fb.Synthetic(**{**FEW, "samples": 16, "iterations": 100}).images(transformer)
    assert found.method == "patch-similarity"
    before, after = (
        float(text.split()[0]) for text in found.notes[0].removeprefix("entropy of patch similarity ").split("-> ")
    )
    assert after > before + 0.1
    assert found.losses[1] < found.losses[0]
    right = (transformer(torch.cat(list(found))).argmax(1) == torch.cat(found.labels)).sum()
    assert int(right) > 10  # of 16


def test_attention_is_seen_however_it_is_written():
    class Explicit(nn.Module):
        """One head, as matrix products."""

        def __init__(self):
            super().__init__()
            self.patches, self.mixed, self.head = nn.Conv2d(2, 8, 3, 3), nn.Linear(8, 24), nn.Linear(8, 4)

        def forward(self, x):
            query, key, value = self.mixed(self.patches(x).flatten(2).mT).chunk(3, -1)
            seen = (query @ key.mT / 8**0.5).softmax(-1) @ value
            return self.head(seen.mean(1))

    torch.manual_seed(0)
    found = fb.Synthetic(**{**FEW, "samples": 4, "iterations": 3}).images(Explicit())
    assert found.method == "patch-similarity"
    assert {len(batch) for batch in found} == {4}


def test_the_entropy_of_a_density_is_that_of_its_integral():
    draw = np.random.default_rng(0)
    numbers = draw.uniform(-1, 1, 300)
    points = np.linspace(-2, 2, 20001)
    kernels = np.exp(-0.5 * ((points[:, None] - numbers) / 0.1) ** 2) / (0.1 * math.sqrt(2 * math.pi))
    density = kernels.mean(1)
    expected = -np.trapezoid(density * np.log(np.maximum(density, 1e-300)), points)
    # The grid has steps of a fifth of the kernel, and numbers go to the points beside them.
    assert float(differential_entropy(torch.tensor(numbers, dtype=torch.float32))) == pytest.approx(expected, abs=0.01)


def test_patches_that_differ_in_many_ways_have_more_entropy_than_alike_ones():
    draw = torch.Generator().manual_seed(0)
    alike = torch.ones(2, 9, 8) + 0.01 * torch.randn(2, 9, 8, generator=draw)
    several = torch.randn(2, 9, 3, generator=draw)
    assert float(patch_entropy(several)) > float(patch_entropy(alike)) + 1
    # Of a kernel at one place: log(width sqrt(2 pi e)).
    assert float(patch_entropy(torch.ones(1, 9, 8))) == pytest.approx(
        math.log(0.1 * math.sqrt(2 * math.pi * math.e)), abs=0.01
    )


def test_total_variation_is_that_of_neighbours():
    image = torch.zeros(1, 1, 3, 4)
    image[0, 0, 1, 1] = 2.0
    # Down, and across: a step of 2 up and one down.
    assert float(total_variation(image)) == pytest.approx(2 * math.sqrt(8), rel=1e-6)
    assert float(total_variation(torch.ones(1, 1, 3, 3))) == pytest.approx(0.0, abs=1e-5)


# All of them.


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_makes_the_same_bytes_and_leaves_no_trace(method, network, transformer):
    model = transformer if method == "patch-similarity" else network
    model.train()
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    given = fb.Synthetic(**{**FEW, "samples": 5, "batch_size": 3, "iterations": 4}, method=method)
    torch.manual_seed(7)
    first, after = given.images(model, seed=1), torch.rand(1)
    torch.manual_seed(8)
    again, other = given.images(model, seed=1), given.images(model, seed=2)
    assert [len(batch) for batch in first] == [3, 2]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert all(torch.equal(*pair) for pair in zip(first.labels, again.labels, strict=True))
    # The model is as it was, the random numbers of others too.
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.head.weight.requires_grad
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_images_are_of_the_type_of_the_model(network):
    found = fb.Synthetic(**{**FEW, "samples": 2, "iterations": 2}).images(network.bfloat16())
    assert found[0].dtype == torch.bfloat16


def test_progress_is_shown_step_by_step(network):
    said = []

    class Heard(Silent):
        def track(self, items, description):
            said.append((description, len(items)))
            yield from items

    fb.Synthetic(**{**FEW, "iterations": 2}).images(network, progress=Heard())
    assert said == [("distill images 1", 2), ("distill images 2", 2)]
