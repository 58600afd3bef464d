"""Keeps progress bars and deprecation notices of libraries off the terminal: they are no news for a user."""

from __future__ import annotations

import warnings


def quiet() -> None:
    """For this process; what the libraries report as errors is still shown."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    for library in ("transformers", "peft"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
