"""Transformers is imported late and by several threads: it is whole before a name is taken from it."""

from __future__ import annotations

import importlib


def import_transformers() -> None:
    """Return once the package is whole. Call this before `from transformers import`.

    At the end of its import the package puts another module in its place. A thread that waits inside that
    statement for another thread's import gets the first module, which lacks most names: ImportError.
    """
    importlib.import_module("transformers")
