"""What a calibration was fitted for: adapters, classifiers and base, by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.types import AdapterProfile


@dataclass(frozen=True, slots=True)
class Binding:
    """`adapters`: name to digest of what routing knows of it. `classifiers`: name to digest of its
    fingerprint, in the order in which they are asked. `versions` of adapters and classifiers are for people:
    a new version with the same routing text routes alike."""

    adapters: Mapping[str, str]
    classifiers: Mapping[str, str]
    base: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def digest_of(profile: AdapterProfile) -> str:
    """sha256 over all that classifiers may read of an adapter."""
    said = [
        profile.name,
        profile.domain,
        profile.task,
        profile.description,
        profile.examples,
        profile.negative_examples,
        profile.keywords,
    ]
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def bind(profiles: Iterable[AdapterProfile], fingerprints: Mapping[str, str], base: str = "") -> Binding:
    """The binding of a set; `fingerprints` by classifier, in order of asking."""
    found = tuple(profiles)
    return Binding(
        adapters={p.name: digest_of(p) for p in sorted(found, key=lambda p: p.name)},
        classifiers={n: hashlib.sha256(text.encode()).hexdigest() for n, text in fingerprints.items()},
        base=base,
        versions={p.name: p.version for p in sorted(found, key=lambda p: p.name)},
    )


def differences(fitted: Binding, present: Binding) -> tuple[str, ...]:
    """What is not as it was, for people; empty if all is."""
    found = [
        *_compare("adapter", fitted.adapters, present.adapters),
        *_compare("classifier", fitted.classifiers, present.classifiers),
    ]
    if not found and list(fitted.classifiers) != list(present.classifiers):
        found.append("classifiers are asked in another order")
    if fitted.base and present.base and fitted.base != present.base:
        found.append(f"the base is {present.base}, not {fitted.base}")
    return tuple(found)


def _compare(what: str, fitted: Mapping[str, str], present: Mapping[str, str]) -> Iterable[str]:
    for name in sorted(fitted.keys() | present.keys()):
        if name not in fitted:
            yield f"{what} {name} is new"
        elif name not in present:
            yield f"{what} {name} is gone"
        elif fitted[name] != present[name]:
            yield f"{what} {name} changed"
