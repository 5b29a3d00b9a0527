"""Gradients come back through a head as they do with all scores at once, without those ever being there together."""

import pytest
import torch
import transformers
from torch import nn

from fewbit.frontends.torch import head_rows
from fewbit.frontends.torch.layers import find_layers
from fewbit.frontends.torch.loss_gradient import LossGradient
from fewbit.frontends.torch.token_weights import GradientRun

SHAPE = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
BATCHES = list(torch.randint(0, 90, (3, 2, 10), generator=torch.Generator().manual_seed(0)))
KINDS = {
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "GPT2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    ),
    # Scores are bent behind the head.
    "Gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0)
    ),
    "Bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE, max_position_embeddings=16)),
}


def made(kind):
    torch.manual_seed(0)
    return KINDS[kind]().eval()


def note_scores(model, found):
    """Note in `found` how many rows of scores the head makes at once; return its forward that does so."""
    head = model.get_output_embeddings()
    own = head.forward

    def forward(given):
        scores = own(given)
        found.append(scores[..., 0].numel())
        return scores

    head.forward = forward
    return forward


@pytest.mark.parametrize(("kind", "by_rows"), [("Llama", True), ("GPT2", True), ("Gemma2", False), ("Bert", True)])
def test_weights_are_those_of_all_scores_at_once(kind, by_rows, monkeypatch):
    monkeypatch.setattr(head_rows, "_ROWS", 8)
    weights, rows = [], []
    for whole in (False, True):
        model = made(kind)
        layers = find_layers(model)
        [head] = [layer.name for layer in layers if layer.kind == "head"]
        seen = []
        noted = note_scores(model, seen)
        names = [layer.name for layer in layers if layer.kind == "linear"]
        run = GradientRun(LossGradient.of(model, layers), layers, BATCHES, [*names, *([head] if whole else [])])
        assert len(list(run)) == 3
        weights.append(run.weights.by_layer)
        rows.append(max(seen))
        assert vars(model.get_output_embeddings())["forward"] is noted
    assert rows == [8 if by_rows else 20, 20]
    assert weights[1].keys() - weights[0].keys() == {head}
    for name, own in weights[0].items():
        for first, second in zip(own, weights[1][name], strict=True):
            # The same labels are drawn; products of some rows are summed in another order than those of all.
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_a_head_is_left_as_it_was_also_when_the_model_fails():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 90)

        def forward(self, rows):
            return self.head(rows).reshape(-1, 90)

    model = Failing()
    with pytest.raises(RuntimeError), head_rows.withheld(model.head) as seen:
        model(torch.ones(3, 4))
    assert len(seen.calls) == 1
    assert "forward" not in vars(model.head)
    assert model(torch.ones(3, 4)).shape == (3, 90)


@pytest.mark.parametrize("change", ["written", "twice", "other"])
def test_what_is_not_what_the_head_put_out_is_known(change):
    head, rows = nn.Linear(4, 90), torch.ones(3, 4)
    with head_rows.withheld(head) as seen:
        scores = head(rows)
        assert seen.given(scores) is rows
        if change == "written":
            scores.mul_(2)
        elif change == "twice":
            head(rows)
        else:
            scores = scores + 0
    assert seen.given(scores) is None
