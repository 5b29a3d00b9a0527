"""Folders as transformers writes them are read to the bit: what guards against hostile ones refuses no honest one."""

import pytest
import torch
import transformers

import fewbit as fb
from fewbit.errors import SourceError
from fewbit.sources import open_source

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
SMALL_GROUPED = SMALL | {"num_key_value_heads": 2}
ENCODER_DECODER = {
    "vocab_size": 300, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0,
}  # fmt: skip
#: Classes whose files differ from the model's own names and shapes in some way, with what makes them small.
MODELS = {
    "LlamaForCausalLM": SMALL_GROUPED | {"tie_word_embeddings": True},
    "MixtralForCausalLM": SMALL_GROUPED | {"num_local_experts": 4},
    "Qwen2MoeForCausalLM": SMALL_GROUPED | {
        "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "DeepseekV3ForCausalLM": SMALL | {
        "n_routed_experts": 8, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 8},
    "Gemma2ForCausalLM": SMALL_GROUPED | {"head_dim": 8},
    "GPT2LMHeadModel": {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 300, "n_positions": 64},
    "GPTNeoXForCausalLM": SMALL,
    "BloomForCausalLM": {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "MambaForCausalLM": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "BertForMaskedLM": SMALL,
    "BertModel": SMALL,
    "AlbertForMaskedLM": SMALL | {"embedding_size": 16},
    "T5ForConditionalGeneration": {
        "vocab_size": 300, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8},
    "BartForConditionalGeneration": ENCODER_DECODER | {"max_position_embeddings": 64},
    "MarianMTModel": ENCODER_DECODER | {"max_position_embeddings": 64},
    "ViTForImageClassification": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
        "patch_size": 8},
}  # fmt: skip


def saved(folder, name):
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**MODELS[name])).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_writes_is_read_to_the_bit(tmp_path, name):
    expected = saved(tmp_path, name).state_dict()
    loaded = open_source(tmp_path).load()
    assert type(loaded).__name__ == name
    assert loaded.state_dict().keys() == expected.keys()
    assert [key for key, tensor in loaded.state_dict().items() if not torch.equal(tensor, expected[key])] == []


def test_a_model_in_several_files_is_read_to_the_bit(tmp_path):
    model = saved(tmp_path / "one", "LlamaForCausalLM")
    model.save_pretrained(tmp_path / "many", max_shard_size="20kB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    loaded = open_source(tmp_path / "many").load()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())


def test_experts_of_another_shape_are_refused_though_the_files_name_them_otherwise(tmp_path):
    import json

    saved(tmp_path, "MixtralForCausalLM")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 64}))
    with pytest.raises(
        SourceError, match=r"mlp\.experts\.\S+ of shape \[4, .*; configuration and weights do not belong"
    ):
        fb.quantize(tmp_path, "w8a16")
