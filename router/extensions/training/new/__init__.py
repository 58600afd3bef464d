"""A recipe and its data out of a file that somebody brings along."""

from __future__ import annotations

from router.extensions.training.new.scaffold import new_recipe
from router.extensions.training.new.writing import Wish

__all__ = ["Wish", "new_recipe"]
