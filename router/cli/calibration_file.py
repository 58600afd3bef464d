"""Which calibration file counts here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.calibration.model import Calibration
    from router.config import Settings
    from router.routing.rules import Rules


def find(said: str, adapters: Sequence[Path]) -> Path | None:
    """The file that was said; with `auto` the first calibration.json in an adapters folder; none if empty."""
    from router.calibration.file import NAME

    if said != "auto":
        return Path(said) if said else None
    return next((folder / NAME for folder in adapters if (folder / NAME).is_file()), None)


def load(settings: Settings) -> Calibration | None:
    """Raises ConfigError if the file is missing, damaged or of another version."""
    from router.calibration.file import read

    path = find(settings.calibration, settings.adapters_dir)
    return read(path) if path else None


def rules_of(settings: Settings) -> Rules:
    """How a server with these settings weighs votes."""
    from router.routing.axes import Axes
    from router.routing.policy import Policy
    from router.routing.rules import Rules

    axes = Axes(settings.task_first, settings.domain_first)
    policy = Policy(settings.abstain_threshold, axes=axes)
    return Rules(policy, load(settings), base=settings.model, strict=settings.strict_threshold)
