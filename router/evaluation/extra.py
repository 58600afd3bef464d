"""What evaluation needs beside the server's own packages: the extra [train]."""

from __future__ import annotations

from importlib import import_module

from router.errors import ConfigError

PACKAGES = ("matplotlib", "sacrebleu", "rouge_score")


def require_extra(what: str) -> None:
    """Import the extra's packages. Raises ConfigError where one is missing: no long run must end for it."""
    for package in PACKAGES:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise ConfigError(f"{what} needs {package}: pip install 'lora-router[train]'") from error
