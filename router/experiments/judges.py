"""Outcome functions for plugins: `router.judging` under the name by which plugins have always imported it."""

from router.judging import REFERENCE, Case, Heard, Judge, Judgement, Preference, Scorer

__all__ = ["REFERENCE", "Case", "Heard", "Judge", "Judgement", "Preference", "Scorer"]
