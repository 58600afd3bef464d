"""`adapters merge`: one adapter out of several, by PEFT's ways of weighing them together."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.errors import ConfigError, FailedPrecondition
from router.extensions.training.export import toml_text, write_lines
from router.extensions.training.files import new_folder
from router.names import NAME_RULE, VERSION_RULE, is_name, is_version
from router.registry.format.artifact import FolderRules, Inspection, digest_of_folder, inspect_folder
from router.registry.format.untrusted import MAX_EXAMPLES, MAX_KEYWORDS, MAX_RANK

if TYPE_CHECKING:
    from router.extensions.training.base import LoadedBase

Say = Callable[[str], None]
PLAIN = ("cat", "linear", "svd")
SPARSE = (
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
    "ties_svd",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune_svd",
)
METHODS = (*PLAIN, *SPARSE)
SAME_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
MERGED = "merged"  # the name inside PEFT
SOURCES = "merged_from.jsonl"


@dataclass(frozen=True, slots=True)
class MergeSource:
    """An adapter folder and what it weighs; a negative weight takes away what it learned."""

    folder: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """What to make. `density` in (0, 1] is the share of each adapter that sparse methods keep; `rank` that of
    the result for methods that decompose (0: the largest among the sources); `seed` draws what DARE drops."""

    name: str
    sources: Sequence[MergeSource]
    output: Path
    base: str  # as for serve
    version: str = "1.0.0"
    method: str = "cat"
    density: float = 0.5
    rank: int = 0
    seed: int = 0
    force: bool = False


def merge(request: MergeRequest, device: str = "auto", say: Say = print) -> Path:
    """Write the merged adapter's folder and return it.

    Manifest and prompt are those of the first source; what routing learns from is that of all. Probes and
    report do not come along: they are of other weights.

    "cat" adds the adapters' changes exactly, at the sum of their ranks; "svd" is the nearest to that at a
    rank of your choice; "linear" weighs their factors (Wortsman et al., 2022). TIES (Yadav et al., 2023) and
    DARE (Yu et al., 2024) keep a share of each, so that they disturb each other less.
    Raises ConfigError (what is asked for), FailedPrecondition (an adapter is refused, another base, the
    folder exists), ResourceExhausted (disk full).
    """
    _check(request)
    seen = [_inspected(source.folder) for source in request.sources]
    _check_ranks(request, seen)
    _check_invocations(seen)
    base = _base_of(request, seen, device)
    say(f"merging {len(seen)} adapters of {base.name}: {request.method}")
    model = _merged(request, base)
    with new_folder(request.output, marker="adapter_config.json") as folder:
        _save(model, base.name, folder)
        (folder / "adapter.toml").write_text(_manifest(request, seen, base), encoding="utf-8")
        write_lines(folder / SOURCES, _records(request, seen))
        made = inspect_folder(folder, FolderRules(None, max_rank=MAX_RANK))
        if not made.ok:
            raise FailedPrecondition(f"the mixture would not be served: {made.error}")
    say(f"rank {made.rank}, {len(made.sites)} sites")
    return request.output


def _check(request: MergeRequest) -> None:
    if not is_name(request.name):
        raise ConfigError(f"the name {request.name!r} must be {NAME_RULE}")
    if not is_version(request.version):
        raise ConfigError(f"--version {request.version!r} must be {VERSION_RULE}")
    if request.method not in METHODS:
        raise ConfigError(f"--method {request.method!r}: there are {', '.join(METHODS)}")
    if len(request.sources) < 2:
        raise ConfigError("two adapters at least make a mixture: NAME=WEIGHT for each")
    for source in request.sources:
        if not math.isfinite(source.weight) or source.weight == 0:
            raise ConfigError(f"{source.folder.name}: a weight is a number other than 0, not {source.weight}")
    if not 0 < request.density <= 1:
        raise ConfigError(f"--density is {request.density}: it must be above 0 and at most 1")
    if request.rank and not request.method.endswith("svd"):
        raise ConfigError(f"--rank is for methods that end in svd, {request.method} has its own")
    if request.output.exists() and not request.force:
        raise FailedPrecondition(f"{request.output} exists: choose another --output, or say --force")


def _inspected(folder: Path) -> Inspection:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no adapter folder")
    seen = inspect_folder(folder, FolderRules(None, max_rank=MAX_RANK))
    if not seen.ok:
        raise FailedPrecondition(f"{folder} would not be served: {seen.error}")
    return seen


def _check_ranks(request: MergeRequest, seen: Sequence[Inspection]) -> None:
    ranks = [one.rank for one in seen]
    if request.method in SAME_RANK and len(set(ranks)) > 1:
        listed = ", ".join(f"{one.name} {one.rank}" for one in seen)
        raise ConfigError(
            f"{request.method} needs adapters of one rank, these have {listed}: use cat or a svd"
        )


def _check_invocations(seen: Sequence[Inspection]) -> None:
    if len({one.invocation_tokens for one in seen}) > 1:
        listed = ", ".join(
            f"{one.name} {list(one.invocation_tokens) or 'from the beginning'}" for one in seen
        )
        raise ConfigError(
            f"these act from different places in a prompt on: {listed}; one adapter can act from one only"
        )


def _base_of(request: MergeRequest, seen: Sequence[Inspection], device: str) -> LoadedBase:
    """The base; all adapters must be for it, as far as they say."""
    from router.extensions.training.base import load_base

    base = load_base(request.base, device)
    for one in seen:
        pinned = one.manifest.base.digest
        if pinned and pinned != base.digest:
            raise FailedPrecondition(
                f"{one.name} was trained on a base with digest {pinned[:12]}…, {base.name} has "
                f"{base.digest[:12]}…: name the right one with --base"
            )
    return base


def _merged(request: MergeRequest, base: LoadedBase) -> Any:
    """A PEFT model whose adapter `MERGED` is the mixture."""
    import torch
    from peft import PeftModel

    names = [f"source{i}" for i in range(len(request.sources))]
    model: Any = None
    for name, source in zip(names, request.sources, strict=True):
        folder = str(_weights_in(source.folder))
        if model is None:
            model = PeftModel.from_pretrained(base.model, folder, adapter_name=name)
        else:
            model.load_adapter(folder, adapter_name=name)
    more: dict[str, Any] = {}
    if request.method in SPARSE:
        more["density"] = request.density
    if request.method.endswith("svd"):
        more |= {"svd_rank": request.rank or None, "svd_full_matrices": False}
    weights = [source.weight for source in request.sources]
    torch.manual_seed(request.seed)
    try:
        model.add_weighted_adapter(names, weights, MERGED, combination_type=request.method, **more)
    except ValueError as error:
        raise ConfigError(f"{request.method} cannot merge these: {error}") from error
    return model


def _weights_in(folder: Path) -> Path:
    """The folder itself, or its one subfolder that holds the adapter, as PEFT writes some."""
    if (folder / "adapter_config.json").is_file():
        return folder
    return next(path.parent for path in sorted(folder.glob("*/adapter_config.json")))


def _save(model: Any, base_name: str, folder: Path) -> None:
    """In bfloat16, at the top of the folder."""
    import torch

    config = model.peft_config[MERGED]
    config.base_model_name_or_path = base_name
    config.target_modules = sorted(config.target_modules)
    for name, parameter in model.named_parameters():
        if f".{MERGED}." in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(folder, selected_adapters=[MERGED], save_embedding_layers=False)
    for path in (folder / MERGED).iterdir():
        path.rename(folder / path.name)
    (folder / MERGED).rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _manifest(request: MergeRequest, seen: Sequence[Inspection], base: LoadedBase) -> str:
    first = _tables(request.sources[0].folder)
    texts = [one.manifest.routing for one in seen]
    examples = _united((text.examples for text in texts), MAX_EXAMPLES)
    against = _united((text.negative_examples for text in texts), MAX_EXAMPLES)
    adapter = {**first.get("adapter", {}), "name": request.name, "version": request.version}
    mixed = ", ".join(f"{one.name}@{one.version}" for one in seen)
    adapter["description"] = f"Merged by {request.method} from {mixed}."[:1_000]
    routing = {
        "examples": examples,
        "negative_examples": [text for text in against if text not in examples],
        "keywords": _united((text.keywords for text in texts), MAX_KEYWORDS),
    }
    return toml_text(
        {
            "adapter": adapter,
            "base": {"model": base.name, "digest": base.digest},
            **{name: first[name] for name in ("prompt", "generation") if name in first},
            "routing": {key: value for key, value in routing.items() if value},
        }
    )


def _tables(folder: Path) -> Mapping[str, Any]:
    """The manifest as it stands there, already found to be right; none is an empty one."""
    path = _weights_in(folder) / "adapter.toml"
    path = path if path.is_file() else folder / "adapter.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _united(texts: Iterable[Sequence[str]], most: int) -> list[str]:
    """All of them once, taking turns, so that each adapter has its share where there are too many."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*texts))
    return list(dict.fromkeys(text for text in turns if text is not None))[:most]


def _records(request: MergeRequest, seen: Sequence[Inspection]) -> Iterable[Mapping[str, Any]]:
    """What it was made of: a line for the way, one for each adapter."""
    way: dict[str, Any] = {"method": request.method}
    if request.method in SPARSE:
        way |= {"density": request.density, "seed": request.seed}
    yield way
    for one, source in zip(seen, request.sources, strict=True):
        digest = digest_of_folder(source.folder)
        yield {"name": one.name, "version": one.version, "weight": source.weight, "digest": digest}
