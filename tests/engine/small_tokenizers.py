"""Small tokenizers of every kind that the engine meets, made here from a few sentences."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Strips contents and knows no system role, as Gemma's and Mistral's first templates do.
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }}</s>{% endif %}{% endfor %}"
)
CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "übersetze das ins Deutsche: a good morning to you, naïve café",
    "def add(a, b):\n    return a + b\n\n  user system assistant  [INST] [/INST]",
    "你好，世界。 emoji 🙂🙃 and more 12 + 13 = 25 <think> words </think>",
]


@cache
def byte_level() -> Any:
    """Like GPT-2, Llama 3, SmolLM: byte-level BPE. `<think>` is an added but not a special token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    raw.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    raw.add_tokens(["<think>", "</think>"])
    return _wrap(raw, CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")


@cache
def sentencepiece() -> Any:
    """Like Llama 2 and Mistral: BPE over `▁` words with byte fallback; a BOS by default."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    raw.train_from_iterator([text for text in CORPUS if "你" not in text], trainer)
    spec = raw.to_str()
    raw = Tokenizer.from_str(_only_special(spec, ["<unk>", "<s>", "</s>"]))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(raw, STRICT, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def unigram() -> Any:
    """Unigram whose vocabulary holds the special names as words; no chat template."""
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} | set("<>/sunk"))
    words = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in letters)]
    raw = Tokenizer(models.Unigram(words, unk_id=0))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    return _wrap(raw, None, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def word_piece() -> Any:
    """Like BERT: `##` continues a word, letters unknown to it are <unk>."""
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece(cleanup=False)
    raw.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False),
    )
    return _wrap(raw, None, eos_token="</s>", unk_token="<unk>")


@cache
def pure_python() -> Any:
    """A tokenizer without the Rust library behind it."""
    return ByT5Tokenizer(extra_ids=4)


@cache
def eager_right() -> Any:
    """Like Phi-3: a special token that swallows the white space after it."""
    raw = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    raw.add_special_tokens([AddedToken("<|end|>", rstrip=True, special=True)])
    template = CHATML.replace("<|im_end|>", "<|end|>")
    return _wrap(raw, template, bos_token="<|im_start|>", eos_token="<|end|>")


def _wrap(raw: Tokenizer, template: str | None, **special: str) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.chat_template = template
    return tokenizer


def _only_special(spec: str, names: list[str]) -> str:
    """The trainer makes every byte token special; real vocabularies do not."""
    import json

    data = json.loads(spec)
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in names]
    return json.dumps(data)
