"""Corrections: which adapter should have answered, stored so that routing can learn from it."""
