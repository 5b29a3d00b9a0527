"""The trainer of Lightning runs on prepared models as it is, and goes on from its checkpoints."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fewbit as fb

lightning = pytest.importorskip("pytorch_lightning")

pytestmark = [
    # Of torch, whose older word Lightning still uses.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # The checkpoint is that of another run.
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    # Its advice for larger data.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning"),
]


class Classifier(lightning.LightningModule):
    """A model, its loss and its optimizer."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam([own for own in self.parameters() if own.requires_grad], 1e-2)


@pytest.fixture
def fit(images, labels, tmp_path):
    """Train a model for so many epochs of four batches, each in the same order, and return the trainer."""

    def fitted(model, epochs, *, resume=None, precision="32-true", kept="kept"):
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, precision=precision, logger=False,
            default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[lightning.callbacks.ModelCheckpoint(tmp_path / kept, save_top_k=-1)],
        )  # fmt: skip
        data = DataLoader(TensorDataset(images(), labels()), batch_size=8)
        trainer.fit(Classifier(model), data, ckpt_path=resume)
        return trainer

    return fitted


def test_a_prepared_model_is_trained_as_in_a_loop_of_ones_own(fit, perceptron, images, labels, outputs):
    model = fb.prepare_qat(perceptron(), "w8a8-static", batch=images())
    fit(model, 2)
    other = fb.prepare_qat(perceptron(), "w8a8-static", batch=images())
    optimizer = torch.optim.Adam(other.parameters(), 1e-2)
    other.train()
    for _ in range(2):
        for own, wanted in zip(images().split(8), labels().split(8), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(other(own), wanted).backward()
            optimizer.step()
    assert int(model.fewbit_step) == 8
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    seen = outputs(model.eval())
    assert torch.allclose(outputs(fb.finish_qat(model).model), seen, atol=1e-6)


def test_a_run_goes_on_from_a_checkpoint_to_the_same_numbers(fit, perceptron, images, tmp_path):
    def prepared():
        return fb.prepare_qat(perceptron(), "w4a8", training=fb.Training(delay=2, freeze_ranges=12))

    whole, again = prepared(), prepared()
    fit(whole, 4)
    fit(again, 4, resume=tmp_path / "kept" / "epoch=1-step=8.ckpt", kept="again")
    assert int(whole.fewbit_step) == int(again.fewbit_step) == 16
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_adapters_are_trained_and_nothing_else(precision, fit, perceptron):
    model = fb.prepare_adapters(fb.quantize(perceptron(), "nf4"))
    before = {name: own.clone() for name, own in model.state_dict().items()}
    fit(model, 2, precision=precision)
    changed = {name for name, own in model.state_dict().items() if not torch.equal(own, before[name])}
    assert changed == {f"{layer}.adapter.{part}" for layer in (1, 3) for part in ("down", "up")}
