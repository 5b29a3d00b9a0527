"""Distillation is the loss of its equation, moves the student towards the teacher, and leaves the teacher alone."""

import copy

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import RecipeError
from fewbit.training.distillation import Distillation, divergence


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8))


def inputs(count=64):
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(1))


def test_the_divergence_is_that_of_torch_times_the_square_of_the_temperature():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    expected = nn.functional.kl_div(
        (student / 3).log_softmax(-1), (teacher / 3).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    # float32 sums of few terms in another order.
    assert torch.allclose(divergence(student, teacher, 3.0), 9 * expected, rtol=1e-5)


def test_a_student_that_is_its_teacher_has_no_loss():
    teacher = network().eval()
    distillation = Distillation(teacher, teacher, features=["1"])
    assert float(distillation(teacher(inputs()), inputs()).detach()) == 0.0


def test_the_parts_count_as_they_are_told():
    teacher, student = network(), network().eval()
    with torch.no_grad():
        student[0].weight += 0.1
    outputs = student(inputs())
    task = outputs.square().mean()

    def loss(**options):
        distillation = Distillation(teacher, student, features=["1"], **options)
        return float(distillation(student(inputs()), inputs(), task).detach())

    only = [
        loss(alpha=1, beta=0, gamma=0),
        loss(alpha=0, beta=1, gamma=0),
        loss(alpha=0, beta=0, gamma=1),
    ]
    assert only[0] == pytest.approx(float(task.detach()))
    assert min(only) > 0
    assert loss(alpha=2, beta=3, gamma=4) == pytest.approx(2 * only[0] + 3 * only[1] + 4 * only[2], rel=1e-5)


def test_a_quantized_student_comes_nearer_to_its_teacher():
    student = network()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        student[0].weight += 0.2 * torch.randn(32, 16, generator=torch.Generator().manual_seed(2))
    fb.prepare_qat(student, fb.Recipe([fb.Rule(kind="linear", weight="int4 channel")]))
    distillation = Distillation(teacher, student, features=["1"])
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    seen = []
    for _ in range(60):
        loss = distillation(student.eval()(inputs()), inputs())
        seen.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert seen[-1] < 0.3 * seen[0]


def test_the_teacher_stays_as_it_is():
    teacher = network().train()
    before = copy.deepcopy(teacher.state_dict())
    student = network().eval()
    distillation = Distillation(teacher, student, features=["0"])
    distillation(student(inputs()), inputs()).backward()
    assert teacher.training
    assert teacher[2].training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    distillation.close()
    assert not teacher[0]._forward_hooks
    assert not student[0]._forward_hooks


def test_a_language_model_is_distilled_by_its_logits(small_llama):
    teacher = small_llama(vocab_size=100)
    student = copy.deepcopy(teacher)
    fb.prepare_qat(student, "w3a16")
    tokens = torch.arange(24)[None]
    outputs = student(input_ids=tokens, labels=tokens)
    loss = Distillation(teacher)(outputs, {"input_ids": tokens}, outputs.loss)
    assert float(loss.detach()) > float(outputs.loss.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, "alpha -1 is no weight of a loss"),
        ({"temperature": 0}, "temperature 0 is not above 0"),
        ({"features": ["9"]}, "the student has no part called '9'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Distillation(network(), network(), **options)


def test_features_need_the_student():
    with pytest.raises(RecipeError, match="give the student too"):
        Distillation(network(), features=["0"])
