"""What an edit changed, as plain values for the audit trail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass

from router.experiments.model import Spec


def changed(old: Spec, new: Spec) -> dict[str, dict[str, object]]:
    """Field -> its value before and after, of JSON types."""
    return {
        f.name: {"before": plain(before), "after": plain(after)}
        for f in fields(Spec)
        if (before := getattr(old, f.name)) != (after := getattr(new, f.name))
    }


def plain(value: object) -> object:
    """`value` of JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    return value


def lost_arms(old: Spec, new: Spec) -> list[str]:
    """Names of the arms that are gone."""
    kept = {arm.name for arm in new.arms}
    return [arm.name for arm in old.arms if arm.name not in kept]
