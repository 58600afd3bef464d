"""Base model and sentence encoders: fetched once, kept in the user's cache.

Nothing heavy is imported here. Conversion runs in a process of its own, so neither its
libraries nor its memory stay with the caller.
"""

from __future__ import annotations

from router.models.base import (
    DEFAULT_BASE,
    DEFAULT_ENCODER,
    MULTILINGUAL,
    cached_base,
    fetch_base,
    fetch_encoder,
    fetch_multilingual,
    has_multilingual,
    resolve_model,
)
from router.models.cache import models_dir

__all__ = [
    "DEFAULT_BASE",
    "DEFAULT_ENCODER",
    "MULTILINGUAL",
    "cached_base",
    "fetch_base",
    "fetch_encoder",
    "fetch_multilingual",
    "has_multilingual",
    "models_dir",
    "resolve_model",
]
