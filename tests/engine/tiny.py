"""Small random models with a byte tokenizer, PEFT adapters for them, and PEFT's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from router.config import Settings
from router.engine.base import AdapterArtifact, Finished, Job
from router.engine.loader import LoadedModel
from router.engine.torch_engine import TorchEngine
from router.engine.weights import ModuleWeights
from router.registry.format.artifact import FolderRules, read_artifact
from router.types import SamplingParams

VOCABULARY = 300
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 256,
}
PARTIAL: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
GEMMA: dict[str, Any] = SHAPE | {
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-long": lambda: LlamaConfig(**(SHAPE | {"max_position_embeddings": 1024})),
    "llama-bias": lambda: LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "llama-narrow": lambda: LlamaConfig(**SHAPE, head_dim=24),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=32),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **SHAPE,
        head_dim=32,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    ),
    "phi3": lambda: Phi3Config(**SHAPE, sliding_window=24, rope_parameters=PARTIAL),
    "gemma2": lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=3.0, final_logit_softcapping=5.0),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA),
}


def tokenizer() -> Any:
    """Every byte is a token; two special tokens."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<pad>", "<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")


@cache
def _weights(kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name or kind.startswith("gemma"):  # whose norms multiply by 1 + weight
                parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    return {k: v.clone() for k, v in model.state_dict().items()}


def model(kind: str) -> Any:
    """The same random weights at each call."""
    made = AutoModelForCausalLM.from_config(CONFIGS[kind]())
    made.load_state_dict(_weights(kind))
    made.generation_config.eos_token_id = SHAPE["eos_token_id"]
    return made.eval().requires_grad_(False)


def parts(model: Any) -> tuple[Any, ModuleWeights]:
    """What a packed backbone is made of."""
    return model.config, ModuleWeights(model)


def engine(kind: str, *, prefix_cache: bool = True, speculation: bool = True, **settings: Any) -> TorchEngine:
    """A started engine on the CPU in float32."""
    values: dict[str, Any] = {"dtype": "float32", "device": "cpu", "cache_tokens": 2048, "native": False}
    loaded = LoadedModel(model(kind), tokenizer(), kind)
    said = Settings(**(values | settings))
    made = TorchEngine(said, loaded, prefix_cache=prefix_cache, speculation=speculation)
    made.start()
    return made


def save_adapter(kind: str, folder: Path, seed: int = 0, **config: Any) -> Any:
    """A PEFT adapter with random weights in `folder`; returns the PEFT model (the reference)."""
    from peft import LoraConfig, get_peft_model

    values: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    with torch.random.fork_rng():  # the same weights whatever ran before: no near tie comes and goes
        torch.manual_seed(seed)
        tuned = get_peft_model(model(kind), LoraConfig(task_type="CAUSAL_LM", **(values | config)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tuned.save_pretrained(folder)
    return tuned.eval()


def artifact(folder: Path, made: TorchEngine) -> AdapterArtifact:
    """The adapter as the registry reads it."""
    return read_artifact(folder, FolderRules(made.info))[0]


def reference(tuned: Any, tokens: Sequence[int], new: int) -> list[int]:
    """Greedy answer of one model alone, without the token that ends it."""
    ids = torch.tensor([list(tokens)])
    out = tuned.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    answer: list[int] = out[0, len(tokens) :].tolist()
    return answer[:-1] if answer[-1] == SHAPE["eos_token_id"] else answer


def greedy(
    tuned: Any, tokens: Sequence[int], found: Sequence[int], new: int, ends: frozenset[int]
) -> list[int]:
    """`found` if it is the greedy answer of one model alone, with at most `new` tokens, else what is.

    One pass over both takes the place of a pass a token: each token must be the likeliest after those before
    it, and one that ends the answer after the last, unless that is the last there may be. Up to the first
    token that differs, what is returned is the model's own answer.
    """
    with torch.no_grad():
        seen = tuned(torch.tensor([[*tokens, *found]]), logits_to_keep=len(found) + 1)
    best: list[int] = seen.logits[0].argmax(-1).tolist()
    own = best[: len(found)]
    return own if len(found) == new or best[len(found)] in ends else [*own, best[len(found)]]


async def answer(
    made: TorchEngine, tokens: Sequence[int], adapter: str | None = None, **params: Any
) -> tuple[list[int], Finished]:
    """Token ids (by their log-probabilities) and the end of one generation."""
    ids: list[int] = []
    job = Job("r", tokens, SamplingParams(logprobs=1, **params), adapter)
    async for event in made.submit(job):
        if isinstance(event, Finished):
            return ids, event
        ids += [entry.token_id for entry in event.logprobs]
    raise AssertionError("no Finished")
