"""The import of transformers, which several threads of a start may need at once."""

from __future__ import annotations

import importlib


def import_transformers() -> None:
    """Return once the import is complete. Call this before a function's `from transformers import`.

    At the end of its import the package replaces itself in `sys.modules`. A thread whose `from` statement
    waits for another thread's import gets the replaced module, which lacks most names: ImportError.
    """
    importlib.import_module("transformers")
