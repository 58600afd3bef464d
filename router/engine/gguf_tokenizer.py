"""The tokenizer of a GGUF file, made of its vocabulary and merges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.engine.gguf import GgufFile
from router.errors import ConfigError
from router.models.importing import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # types of tokens
_SPACE = "\u2581"  # what SentencePiece writes for one
# How text is cut before merges, by the names that llama.cpp gives (`llama-vocab.cpp`): regular expressions of
# the models' own tokenizers.
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}", rf"{_LETTERS}|\p{{N}}|{_REST}"
_SPLITS = dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), _LLAMA3) | dict.fromkeys(
    ("qwen2", "deepseek-r1-qwen"), _QWEN2
)
_GPT2 = ("gpt-2", "smollm")


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerBase:
    """As transformers has it, with chat template. Raises ConfigError for a kind that is not known."""
    import_transformers()
    from transformers import PreTrainedTokenizerFast

    kind: str = file.fact("tokenizer.ggml.model", str)
    tokens = _texts(file, "tokenizer.ggml.tokens")
    if len(set(tokens)) < len(tokens):
        raise ConfigError(f"{file.path.name} has a token twice in its vocabulary")
    if kind == "gpt2":
        made = _byte_level(file, tokens)
    elif kind == "llama":
        made = _sentencepiece(file, tokens)
    else:
        raise ConfigError(f"{file.path.name} has a tokenizer of kind {kind!r}, and gpt2 and llama are read")
    named = {f"{name}_token": _named(file, tokens, key) for name, key in _NAMED.items()}
    _add_special(file, made, tokens)
    if file.fact("tokenizer.ggml.add_bos_token", bool, kind == "llama") and named["bos_token"]:
        _begin_with(made, named["bos_token"], tokens.index(named["bos_token"]))
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **{k: v for k, v in named.items() if v}
    )
    if template := file.fact("tokenizer.chat_template", str, ""):
        tokenizer.chat_template = template
    return tokenizer


_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def _byte_level(file: GgufFile, tokens: list[str]) -> Any:
    """Byte-level BPE (Radford et al. 2019)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    cut: str = file.fact("tokenizer.ggml.pre", str, "")
    whole = _SPLITS.get(cut) == _LLAMA3  # a word that is a token is not merged
    made = Tokenizer(models.BPE(vocab=_numbered(tokens), merges=_merges(file, tokens), ignore_merges=whole))
    if cut in _SPLITS:
        parts: list[Any] = [pre_tokenizers.Split(Regex(_SPLITS[cut]), behavior="isolated")]
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    elif cut in _GPT2:
        parts = [pre_tokenizers.Digits(individual_digits=True)] if cut == "smollm" else []
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    else:
        known = ", ".join(sorted({*_SPLITS, *_GPT2}))
        raise ConfigError(f"{file.path.name} has tokenizer.ggml.pre = {cut!r}, and {known} are known")
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Any:
    """BPE of SentencePiece (Kudo & Richardson 2018): pairs are merged by the score of what they make."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores: Any = file.fact("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise ConfigError(f"{file.path.name} has {len(scores)} scores for {len(tokens)} tokens")
    vocabulary = _numbered(tokens)
    pairs = [
        (-scores[vocabulary[token]], len(token[:cut]), token[:cut], token[cut:])
        for token in tokens
        for cut in range(1, min(len(token), _LONGEST_PIECE))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges = [(left, right) for _, _, left, right in sorted(pairs)]
    unknown = _named(file, tokens, "unknown") or None
    made = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaced = [normalizers.Replace(" ", _SPACE)]
    prefix = file.fact("tokenizer.ggml.add_space_prefix", bool, True)
    made.normalizer = normalizers.Sequence([*([normalizers.Prepend(_SPACE)] if prefix else []), *spaced])
    ends = [decoders.Strip(" ", left=1)] if prefix else []
    made.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return made


_LONGEST_PIECE = 64  # characters of a token that merges are looked for in


def _merges(file: GgufFile, tokens: list[str]) -> list[tuple[str, str]]:
    known, found = set(tokens), []
    for merge in _texts(file, "tokenizer.ggml.merges", []):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            raise ConfigError(f"{file.path.name} merges {merge[:80]!r}, which its vocabulary does not have")
        found.append((left, right))
    return found


def _add_special(file: GgufFile, made: Any, tokens: list[str]) -> None:
    """Control tokens and those of users are never cut, and text of a prompt spells only the latter."""
    from tokenizers import AddedToken

    kinds: Any = file.fact("tokenizer.ggml.token_type", list, [])
    pairs = list(zip(tokens, kinds, strict=False))
    special = [token for token, kind in pairs if kind in (_CONTROL, _UNKNOWN)]
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    own = [token for token, kind in pairs if kind == _USER_DEFINED]
    made.add_tokens([AddedToken(token, normalized=False) for token in own])


def _begin_with(made: Any, token: str, number: int) -> None:
    from tokenizers import processors

    made.post_processor = processors.TemplateProcessing(
        single=f"{token}:0 $A:0", pair=f"{token}:0 $A:0 $B:1", special_tokens=[(token, number)]
    )


def _named(file: GgufFile, tokens: list[str], key: str) -> str:
    number = file.facts.get(f"tokenizer.ggml.{key}_token_id")
    if number is None:
        return ""
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise ConfigError(f"{file.path.name}: tokenizer.ggml.{key}_token_id is {number!r}, which is no token")
    return tokens[number]


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _texts(file: GgufFile, key: str, default: list[str] | None = None) -> list[str]:
    texts: list[Any] = file.fact(key, list, default)
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{file.path.name}: {key} holds what is no text")
    return texts
