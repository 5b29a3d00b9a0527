"""What models of transformers make for themselves when nothing but `synthetic` is said."""

import pytest
import torch

import fewbit as fb
from fewbit.errors import CalibrationError
from fewbit.synthetic.attention_outputs import AttentionOutputs


def vit(attention="sdpa"):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**shape, image_size=16, patch_size=4, num_labels=4, attn_implementation=attention)
    return ViTForImageClassification(config).eval()


def swin():
    from transformers import SwinConfig, SwinForImageClassification

    torch.manual_seed(0)
    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4, num_labels=4
    )  # fmt: skip
    return SwinForImageClassification(config).eval()


def outputs(model, images):
    found = AttentionOutputs(len(images))
    with torch.no_grad(), found.of(model):
        model(images)
    return found.seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_vision_transformer_shows_the_outputs_of_its_patches(attention):
    model, images = vit(attention), torch.randn(3, 3, 16, 16)
    kept = []
    parts = [part for name, part in model.named_modules() if name.endswith(("o_proj", "output.dense"))]
    wanted = [part for part in parts if part.in_features == 16]
    handles = [part.register_forward_pre_hook(lambda _, given: kept.append(given[0])) for part in wanted]
    seen = outputs(model, images)
    for handle in handles:
        handle.remove()
    assert [tuple(own.shape) for own in seen] == [(3, 16, 16)] * 2
    # The token of the class comes first, and what the projection is given is what attention puts out.
    assert all(any(torch.allclose(own, given[:, 1:], atol=1e-6) for given in kept) for own in seen)


def test_windows_are_samples_of_their_own():
    seen = outputs(swin(), torch.randn(3, 3, 16, 16))
    assert [tuple(own.shape) for own in seen] == [(3 * 4, 16, 8)] * 2


@pytest.mark.parametrize("model", [vit, swin])
def test_a_vision_transformer_is_calibrated_on_images_of_the_shape_that_it_says(model):
    calibration = fb.Calibration(data=fb.Synthetic(iterations=2, batch_size=2), samples=3)
    report = fb.quantize(model(), "w8a8-static", calibration=calibration).report
    assert report.calibration.startswith("3 synthetic images of 3x16x16 (patch-similarity), 2 steps, loss ")


def test_a_language_model_writes_text():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=64, **shape)).eval()
    with pytest.raises(CalibrationError, match="iterations 2 are those of images, and LlamaForCausalLM writes text"):
        fb.quantize(model, "w4a16", calibration=fb.Synthetic(iterations=2))
    calibration = fb.Calibration(data="synthetic", samples=3, length=12)
    assert fb.quantize(model, "w4a16", calibration=calibration).report.calibration == (
        "text that the model wrote: 3 x 12 tokens"
    )
