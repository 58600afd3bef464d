"""A recipe and its data out of a file that somebody brings along."""

from __future__ import annotations

from router.training.new.scaffold import METRICS, Wish, new_recipe

__all__ = ["METRICS", "Wish", "new_recipe"]
