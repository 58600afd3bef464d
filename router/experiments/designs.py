"""By what a difference in the better direction is shown: designs of experiments."""

from __future__ import annotations

from enum import StrEnum


class Design(StrEnum):
    """How the primary metric of a split is shown to be better, or not worse. Harm is always valid."""

    PLANNED = "planned"
    """Until the planned size by the planned bound, at any size by the always-valid sequence."""
    OPEN = "open"
    """By the always-valid sequence alone."""
    HYBRID = "hybrid"
    """As planned, and within alpha however many units come: nine tenths of it are the planned bound's."""

    @property
    def shares(self) -> tuple[float, float]:
        """Parts of alpha of the planned bound and of the always-valid sequence."""
        return {Design.PLANNED: (1.0, 1.0), Design.OPEN: (0.0, 1.0), Design.HYBRID: (0.9, 0.1)}[self]

    @property
    def proto(self) -> str:
        """The value of the proto's enum."""
        return f"DESIGN_{self.name}"
