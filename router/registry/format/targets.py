"""Whether the tensors are those that adapter_config.json says were trained.

A target without weights and weights outside the targets both mean that the folder is not what was trained;
PEFT loads such a folder partly, or as an unchanged base, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from router.registry.format.codes import Code
from router.registry.format.config_values import CONFIG
from router.registry.format.findings import Findings
from router.registry.format.lora_config import LoraSettings
from router.registry.format.patterns import META, dotted_suffixes
from router.registry.format.sites import candidates
from router.registry.format.text import some

_INDEX = re.compile(r"[0-9]{1,9}")


def check_targets(
    settings: LoraSettings, sites: Collection[str], with_weights: Collection[str], found: Findings
) -> None:
    """Compare the sites that have weights with those the configuration targets.

    Nothing can be compared where targets or exclusions are patterns, which are not evaluated.
    """
    targets = settings.target_modules
    if targets is None or any(META.intersection(name) for name in settings.layers_pattern):
        return
    excluded = settings.exclude_modules
    names = {name for target in targets for name in _names(target)}
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


def _names(target: str) -> Iterable[str]:
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
