"""A base small enough to train in a test, saved as transformers saves any model."""

from __future__ import annotations

import json
from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOURS = ("red", "blue", "green")


def save_base(folder: Path) -> Path:
    """A random two-layer Llama with a byte-level tokenizer."""
    import torch  # transformers takes seconds to load: who only reads a recipe does not pay for it
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<|im_start|>", "<|im_end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_data(folder: Path) -> None:
    """Three splits of a toy task: the colour of a thing."""
    for start, name, count in ((0, "train", 24), (24, "valid", 9), (33, "test", 9)):
        rows = [
            {"prompt": f"colour of thing {place}?", "response": COLOURS[place % 3]}
            for place in range(start, start + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe_text(base: Path, *, steps: int = 6, extra: str = "", train: str = "") -> str:
    """A recipe for the toy task."""
    return f"""
[adapter]
name = "colours"
domain = "art"
[base]
model = "{base}"
[data]
train = "train.jsonl"
valid = "valid.jsonl"
test = "test.jsonl"
[prompt]
system = "Name the colour."
[lora]
rank = 4
dropout = 0.1
[train]
steps = {steps}
batch = 4
learning_rate = 0.02
eval_every = 2
seed = 3
{train}
[generation]
max_tokens = 8
[routing]
examples = ["which colour is \\"it\\"?", "back\\\\slash"]
{extra}
"""
