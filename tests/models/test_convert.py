"""A GGUF file becomes the model and tokenizer it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from router.models import convert as module
from router.models.cache import sums_of
from tests.engine import small_tokenizers as small

HEADS, KV_HEADS, LAYERS = 4, 2, 2
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleaved(weight: Any, heads: int) -> Any:
    """GGUF's order of rotary pairs."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_string("general.license", "apache-2.0")
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])  # 3: control
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(small.CHATML)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(LAYERS):
        for theirs, ours in NAMES.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"].numpy()
            if ours in ("attn_q", "attn_k"):
                weight = interleaved(weight, HEADS if ours == "attn_q" else KV_HEADS)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_same_file_gives_the_same_bytes_each_time(converted, tmp_path):
    """Without it the weights of the default base could not be pinned."""
    module.main(converted[1].parent / "m.gguf", tmp_path)
    assert sums_of(tmp_path) == sums_of(converted[1])
    assert "model.safetensors" in sums_of(tmp_path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = small.byte_level()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "m.gguf", model, tokenizer)
    (folder / "out").mkdir()
    module.main(folder / "m.gguf", folder / "out")
    return model, folder / "out"


def test_weights_are_those_of_the_model_in_bfloat16(converted):
    model, folder = converted
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.dtype == torch.bfloat16
    for name, weight in model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], weight.bfloat16()), name
    assert plain.generation_config.eos_token_id == small.byte_level().eos_token_id


def test_tokenizer_is_the_one_it_was_made_from(converted):
    tokenizer, original = AutoTokenizer.from_pretrained(converted[1]), small.byte_level()
    for text in ("a  12 b", "naïve 你好 🙂\n\n  x", "def f():\n    return 7"):
        ids = tokenizer(text)["input_ids"]
        assert ids == original(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages) == original.apply_chat_template(messages)
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|im_end|>", 128)


def test_folder_says_where_it_comes_from(converted):
    facts = (converted[1] / "source.json").read_text()
    assert '"gguf": "m.gguf"' in facts
    assert '"license": "apache-2.0"' in facts
