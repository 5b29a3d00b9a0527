"""The bytes that a training is said to take are those that torch then allocates."""

import copy

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import PlanError, RecipeError
from fewbit.training.memory import STATES
from fewbit.training.schedule import STEP

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "sgd-momentum": lambda own: torch.optim.SGD(own, momentum=0.9),
}


def nbytes(tensors):
    return sum(own.numel() * own.element_size() for own in tensors)


def saved(output, model):
    """Walk the graph behind `output` and return the bytes that its functions have saved, without and with scalars.

    A number of Python is a scalar in float64 for the graph and lies in no memory of torch; others look the same.
    """
    held = {own.untyped_storage().data_ptr() for own in (*model.parameters(), *model.buffers())}
    found, waiting, seen = {}, [output.grad_fn], set()
    while waiting:
        function = waiting.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        waiting += [own for own, _ in function.next_functions]
        tensors = [getattr(function, name) for name in dir(function) if name.startswith("_saved_")]
        tensors += getattr(function, "saved_tensors", ())
        for own in tensors:
            for tensor in own if isinstance(own, tuple | list) else (own,):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes(), tensor
    sizes = [(size, tensor) for place, (size, tensor) in found.items() if place not in held]
    scalars = sum(size for size, tensor in sizes if not tensor.ndim and tensor.dtype == torch.float64)
    whole = sum(size for size, _ in sizes)
    return whole - scalars, whole


@pytest.mark.parametrize("optimizer", STATES)
@pytest.mark.parametrize("recipe", ["w8a8-static", "w4a16", "nf4"])
def test_gradients_and_states_are_those_that_torch_allocates(recipe, optimizer, convolutional, images, labels):
    needs = fb.plan_qat(convolutional(), recipe, batch=images(), optimizer=optimizer).memory
    model = fb.prepare_qat(convolutional(), recipe, batch=images())
    assert needs.weights == nbytes((*model.parameters(), *model.buffers()))
    own = OPTIMIZERS[optimizer](model.parameters())
    nn.functional.cross_entropy(model.train()(images()), labels()).backward()
    own.step()
    assert needs.gradients == nbytes(one.grad for one in model.parameters() if one.grad is not None)
    assert needs.optimizer == nbytes(
        one for states in own.state.values() for one in states.values() if isinstance(one, torch.Tensor)
    )


@pytest.mark.parametrize("gradient", ["straight-through", "lsq", "pact"])
@pytest.mark.parametrize("recipe", ["w8a8-static", "nf4"])
def test_activations_are_what_the_graph_of_a_step_has_saved(recipe, gradient, convolutional, images):
    training = fb.Training(gradient=gradient)
    model = fb.prepare_qat(convolutional(), recipe, training=training, batch=images())
    before = {name: own.clone() for name, own in model.state_dict().items()}
    needs = fb.training_memory(model, batch=images())
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())  # a copy has run
    least, most = saved(model.train()(images()), model)
    assert least <= needs.activations <= most
    assert most - least < 1e-4 * most


def test_a_float_network_saves_what_its_layers_are_given():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    needs = fb.training_memory(model, batch=torch.randn(16, 64))
    # The second layer is given what the ReLU puts out, which is saved once for both.
    assert needs.activations == 4 * (16 * 64 + 16 * 32)
    assert needs.whole == needs.weights + needs.gradients + needs.optimizer + needs.activations


def test_a_larger_batch_saves_more_and_changes_nothing_else(perceptron, images):
    one, two = (fb.plan_qat(perceptron(), "w4a16", batch=images(count)).memory for count in (32, 64))
    assert one.activations < two.activations
    assert one.rows == two.rows


def test_of_adapters_only_they_have_gradients_and_the_base_is_codes(perceptron, images):
    whole = fb.plan_qat(perceptron(), "nf4", batch=images()).memory
    model = fb.prepare_adapters(fb.quantize(perceptron(), "nf4"), fb.Adapters(rank=2))
    needs = fb.training_memory(model, batch=images())
    rows = {row.what: row for row in needs.rows}
    numbers = 2 * (64 + 64) + 2 * (64 + 10)
    assert (rows["adapters"].numbers, needs.gradients, needs.optimizer) == (numbers, 4 * numbers, 8 * numbers + 4 * 4)
    codes, groups = 64 * 64 + 64 * 10, 64 + 10
    assert rows["codes and scales"].weights == codes // 2 + 4 * groups  # two codes a byte, a float32 for 64 of them
    assert "codes as kernels hold them" not in rows
    loose = fb.quantize(perceptron(), "nf4").model
    assert {row.what: row for row in fb.training_memory(loose).rows}["codes and scales"].weights == codes + 4 * groups
    assert needs.weights < 0.3 * whole.weights
    assert needs.activations < whole.activations


def test_the_plan_is_that_of_the_training_and_the_model_stays_as_it_was(perceptron, images):
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    needs = fb.plan_qat(model, "w4a8", batch=images(), training=fb.Training(gradient="ewgs"))
    assert {row.algorithm.name for row in needs.plan.rows} == {"training, ewgs"}
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())
    assert STEP not in model.state_dict()
    text = str(needs)
    assert "int4 g64" in text
    assert "weights in training" in text
    assert "saved by a forward" in text
    assert needs.memory.to_dict()["whole"] == needs.memory.whole


def test_without_a_batch_activations_are_unknown(perceptron):
    needs = fb.plan_qat(perceptron(), "w4a16").memory
    assert needs.activations is None
    assert "unknown; give a batch" in str(needs)


def test_what_cannot_be_planned_is_refused(perceptron):
    with pytest.raises(RecipeError, match="unknown optimizer 'lion'; known: adam, adamw, sgd, sgd-momentum"):
        fb.plan_qat(perceptron(), "w4a16", optimizer="lion")
    with pytest.raises(PlanError, match="learns its levels once"):
        fb.plan_qat(perceptron(), fb.Recipe([fb.Rule(kind="linear", weight="kmeans4")]))
