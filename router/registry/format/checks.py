"""Whether an adapter's parts fit each other and the base: targets, ranks, shapes, whole matrices, vocabulary.

What does not fit is not what was trained; PEFT loads such a folder partly, or as an unchanged base, with a
warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from router.engine.base import BaseInfo
from router.registry.format.folder import CONFIG, MANIFEST, WEIGHTS, Folder, FolderError
from router.registry.format.lora_config import META, LoraSettings, dotted_suffixes
from router.registry.format.manifest import BasePin
from router.registry.format.tensors import (
    LoraPair,
    TensorEntry,
    candidates,
)
from router.registry.format.untrusted import Code, FolderFindings, show, some

# -- the base

_QUANTISED = re.compile(
    r"([-_.](unsloth|bnb|nf4|fp4|fp8|int8|int4|[48]bit|gptq|awq|gguf|bf16|fp16|f16|q[0-9]_([0-9]|k(_[sml])?)))+$"
)
_CACHED = re.compile(r"lora-router/models/([^/]+)-[0-9a-f]{8}/?$")  # as router.models keeps a known base
_HUB = re.compile(r"/models--(?:[^/]+?--)?([^/]+)/snapshots/[^/]+/?$")  # as huggingface_hub keeps a model


def check_base(pin: BasePin, configured: str, base: BaseInfo, found: FolderFindings) -> None:
    """A pinned digest must be the base's; without one another name is noted and shapes decide."""
    if pin.digest:
        if pin.digest != base.digest.removeprefix("sha256:"):
            here = f"{base.digest} ({show(base.name)})"
            message = f"was trained on the base {pin.digest}, this server has {here}"
            found.refuse(Code.OTHER_BASE, message, f"{MANIFEST} [base] digest")
        return
    trained = pin.model or configured
    if trained and plain_name(trained) != plain_name(base.name):
        message = f"was trained on {show(trained, 160)}, is served on {show(base.name, 160)}"
        found.note(Code.OTHER_BASE_NAME, message)


def plain_name(model: str) -> str:
    """A model's name without owner, path, case and marks of quantisation; also of a folder in a cache.

    >>> plain_name("unsloth/SmolLM2-135M-Instruct-unsloth-bnb-4bit")
    'smollm2-135m-instruct'
    >>> plain_name("/srv/SmolLM2-135M-Instruct-Q4_K_M.gguf")
    'smollm2-135m-instruct'
    >>> plain_name("/root/.cache/lora-router/models/smollm2-135m-instruct-bcc81830")
    'smollm2-135m-instruct'
    """
    cached = _CACHED.search(model) or _HUB.search(model)
    name = (cached[1] if cached else model.rstrip("/").rpartition("/")[2]).lower()
    return _QUANTISED.sub("", name)


def check_invocation(tokens: Collection[int], vocab_size: int, found: FolderFindings) -> None:
    """Refuse an activated LoRA that waits for tokens that a base of `vocab_size` rows does not have."""
    unknown = [token for token in tokens if token >= vocab_size]
    if unknown:
        message = (
            f"the base has {vocab_size} tokens, {unknown[0]} is none of them; train again with the base's "
            "own tokenizer"
        )
        found.refuse(Code.VOCABULARY, message, f"{CONFIG} alora_invocation_tokens")


# -- targets: those that adapter_config.json names against those that have weights

_INDEX = re.compile(r"[0-9]{1,9}")


def check_targets(
    settings: LoraSettings, sites: Collection[str], with_weights: Collection[str], found: FolderFindings
) -> None:
    """Compare the sites that have weights with those the configuration targets.

    Nothing can be compared where targets or exclusions are patterns, which are not evaluated.
    """
    targets = settings.target_modules
    if targets is None or any(META.intersection(name) for name in settings.layers_pattern):
        return
    excluded = settings.exclude_modules
    names = {name for target in targets for name in _target_names(target)}
    expected = {s for s in sites if _targeted(s, names, settings)}
    if excluded is not None:
        expected -= {s for s in sites if _named(s, excluded)}
        missing = sorted(expected.difference(with_weights))
        if missing:
            message = f"{len(missing)} target modules have no weights: {some(missing)}"
            found.refuse(Code.TARGET_WITHOUT_WEIGHTS, message, f"{CONFIG} target_modules")
    extra = sorted(set(with_weights).difference(expected))
    if extra:
        message = f"{len(extra)} modules have weights but are no targets: {some(extra)}"
        found.refuse(Code.WEIGHTS_WITHOUT_TARGET, message, f"{CONFIG} target_modules")


def _target_names(target: str) -> Iterable[str]:
    """A target, and what it is called in the base if a trainer's wrappers are part of it."""
    return (target, *candidates(target)) if "." in target else (target,)


def _named(site: str, names: Collection[str]) -> bool:
    return any(suffix in names for suffix in dotted_suffixes(site))


def _targeted(site: str, targets: Collection[str], settings: LoraSettings) -> bool:
    if site in targets:
        return True
    if not _named(site, targets):
        return False
    layers = settings.layers_to_transform
    return not layers or _layer(site, settings.layers_pattern) in layers


def _layer(site: str, patterns: Collection[str]) -> int | None:
    """Index of the layer a site is in: the first number after a name (of `patterns`, if there are any)."""
    parts = site.split(".")
    first = 1 if patterns else 2  # as PEFT does it
    for before, part in zip(parts[first - 1 : -1], parts[first:-1], strict=False):
        if _INDEX.fullmatch(part) and (not patterns or before in patterns):
            return int(part)
    return None


# -- ranks and shapes


@dataclass(frozen=True, slots=True)
class SitePlan:
    """One site as it will be served."""

    site: str
    rank: int
    scaling: float


def plan_sites(
    settings: LoraSettings,
    pairs: Mapping[str, LoraPair],
    sites: Mapping[str, tuple[int, int]] | None,
    max_rank: int,
    found: FolderFindings,
) -> tuple[SitePlan, ...]:
    """Rank and scale of every site. `sites` are (out, in) of the base, None if it is not known yet."""
    if settings.largest_rank > max_rank:
        message = f"rank {settings.largest_rank} is more than this server serves (max_rank {max_rank})"
        found.refuse(Code.RANK_TOO_LARGE, message)
    wrong_rank, wrong_shape = [], []
    for site, pair in pairs.items():
        rank = settings.rank_at(site)
        if not settings.ranks_known:
            rank = pair.a.shape[0]
        if not _has_rank(pair, rank):
            wrong_rank.append(f"{show(site, 120)} is configured with rank {rank}, has {_shapes(pair)}")
        elif sites is not None and (pair.b.shape[0], pair.a.shape[1]) != sites[site]:
            out, into = sites[site]
            wrong_shape.append(
                f"{show(site, 120)} is {out}x{into} in the base, the adapter has {_shapes(pair)}"
            )
    _refuse_sites(Code.RANK_MISMATCH, wrong_rank, found)
    _refuse_sites(Code.SHAPE_MISMATCH, wrong_shape, found)
    _note_unused(settings, pairs, found)
    return tuple(SitePlan(s, settings.rank_at(s), settings.scaling_at(s)) for s in sorted(pairs))


def _note_unused(settings: LoraSettings, pairs: Mapping[str, LoraPair], found: FolderFindings) -> None:
    fields = {"rank_pattern": settings.rank_pattern, "alpha_pattern": settings.alpha_pattern}
    for field, patterns in fields.items():
        unused = patterns.unused(pairs.keys())
        if unused:
            found.note(Code.CONFIG_PATTERN, f"fits no module: {some(unused)}", f"{CONFIG} {field}")


def _has_rank(pair: LoraPair, rank: int) -> bool:
    a, b = pair.a.shape, pair.b.shape
    return len(a) == 2 and len(b) == 2 and a[0] == rank and b[1] == rank


def _shapes(pair: LoraPair) -> str:
    return f"A {list(pair.a.shape)} and B {list(pair.b.shape)}"


def _refuse_sites(code: Code, wrong: list[str], found: FolderFindings) -> None:
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        found.refuse(code, "; ".join(wrong[:3]) + more, WEIGHTS)


# -- whole matrices of the base that were saved along: targeting an embedding makes PEFT save them

_WAY_OUT = (
    "only LoRA weights can be served over a shared base; save again with save_embedding_layers=False, "
    "without modules_to_save and with the base's own vocabulary, or drop those that equal the base's with "
    "`lora-router adapters convert`"
)


def refuse_full(full: Mapping[str, TensorEntry], found: FolderFindings) -> None:
    """Refuse whole matrices, naming modules and rows."""
    if full:
        names = some(f"{module} ({entry.shape[0]} rows)" for module, entry in full.items())
        found.refuse(Code.FULL_COPY, f"holds whole weights of {names}: {_WAY_OUT}", WEIGHTS)


# -- tokens that a trainer added to the vocabulary: the base has no rows for them
#
# PEFT saves the enlarged matrices only if it can reach the base's configuration, and neither of them (without
# a word) if it cannot; the tokenizer that trainers leave in the folder then is the only trace.

TOKENIZER = "tokenizer.json"
HEAD_BYTES = 1 << 18  # "added_tokens" comes before the vocabulary, which may take tens of megabytes
_KEY = '"added_tokens":'


def check_vocabulary(folder: Folder, vocab_size: int, found: FolderFindings) -> None:
    """Refuse an adapter whose own tokenizer has tokens that a base of `vocab_size` rows does not have."""
    try:
        with folder.file(TOKENIZER) as file:
            head = file.head(HEAD_BYTES)
    except FolderError:
        return  # it is not needed for anything else
    added = [token for token in _added_tokens(head) if token[0] >= vocab_size]
    if added:
        message = (
            f"was trained with {len(added)} tokens added to the vocabulary ({some(t[1] for t in added)}), "
            f"the base has {vocab_size} rows; train again with the base's own tokenizer, or "
            "where the one new token is for padding use `lora-router adapters convert`"
        )
        found.refuse(Code.VOCABULARY, message, TOKENIZER)


def _added_tokens(head: bytes) -> list[tuple[int, str]]:
    text = head.decode("utf-8", "ignore")
    at = text.find(_KEY)
    if at < 0:
        return []
    try:
        values, _ = json.JSONDecoder().raw_decode(text[at + len(_KEY) :].lstrip())
    except (ValueError, RecursionError):
        return []
    if not isinstance(values, list):
        return []
    return [(v["id"], v["content"]) for v in values if _is_token(v)]


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("id")) is int and isinstance(value.get("content"), str)
