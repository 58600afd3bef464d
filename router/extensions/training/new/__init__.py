"""A recipe and its data out of a file that somebody brings along."""

from __future__ import annotations

from router.extensions.training.new.scaffold import new_recipe
from router.extensions.training.new.writing import RecipeRequest

__all__ = ["RecipeRequest", "new_recipe"]
