"""Every failure as one line that says what to do, and an exit code: 1 it failed, 2 it was asked wrongly."""

from __future__ import annotations

import os
import sys

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


class CliError(Exception):
    """A failure with its own text for the terminal."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def explain(error: Exception) -> tuple[str, int]:
    """The line and the exit code for an exception that reached the top."""
    if isinstance(error, CliError):
        return str(error), error.code
    if hasattr(error, "format_message"):
        return _usage(error), getattr(error, "exit_code", MISUSED)
    from router.errors import ConfigError, RouterError

    if isinstance(error, ConfigError):
        return error.message, MISUSED
    if isinstance(error, RouterError):
        return error.message, FAILED
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", FAILED
    hint = "run it again with LORA_ROUTER_TRACEBACK=1 for the traceback"
    return f"unexpected {type(error).__name__}: {error}; {hint}", FAILED


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "lora-router"
    text = str(error.format_message())  # type: ignore[attr-defined]
    return f"{text.rstrip('.')}; see '{path} --help'"


def report(error: Exception) -> int:
    """Print the line on stderr and return the exit code; raises again if a traceback is asked for."""
    if os.environ.get("LORA_ROUTER_TRACEBACK"):
        raise error
    text, code = explain(error)
    print(f"lora-router: {' '.join(text.split())}", file=sys.stderr)
    return code
