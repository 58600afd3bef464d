"""The settings of mirrors."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from router.hookspecs import Formerly


class MirrorSettings(BaseModel):
    """The table [mirrors]."""

    model_config = ConfigDict(frozen=True)

    seconds: Annotated[float, Formerly("mirror_seconds")] = Field(
        5.0, gt=0, description="how often stores of adapters are listed"
    )
    cache_mb: Annotated[int, Formerly("mirror_cache_mb")] = Field(
        8192, ge=0, description="files of stores that are kept by their digest beside what is mirrored"
    )
    wait_seconds: Annotated[float, Formerly("mirror_wait_seconds")] = Field(
        300.0, ge=0, description="most time for which a start waits until all of a store was mirrored once"
    )
