"""What all commands share: failures as one line and an exit code, groups with sub-commands, quiet libraries.

Exit codes: 1 it failed, 2 it was asked wrongly.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import typer
from typer.core import TyperGroup

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
HELP_FLAGS = ("--help", "-h")


class CliError(Exception):
    """A failure with its own text for the terminal."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def report(error: Exception) -> int:
    """Print the line on stderr and return the exit code; raises again if a traceback is asked for."""
    if os.environ.get("LORA_ROUTER_TRACEBACK"):
        raise error
    text, code = explain(error)
    print(f"lora-router: {' '.join(text.split())}", file=sys.stderr)
    return code


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


def time_of(text: str, option: str) -> datetime:
    """A time as people write it, in UTC where they name no zone. Raises CliError, which names the option."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        wrong = f"{option} takes a time such as 2027-01-01 or 2027-01-01T12:00:00Z, not {text!r}"
        raise CliError(wrong, MISUSED) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "lora-router"
    text = str(error.format_message())  # type: ignore[attr-defined]
    return f"{text.rstrip('.')}; see '{path} --help'"


def group(help_text: str, **commands: Callable[..., Any]) -> typer.Typer:
    """A command with sub-commands, in the order given. What is none of them goes to the one in capitals:
    `route "which ..."` and `route --json hi` to PROMPT."""
    if any(name.isupper() for name in commands):
        made = typer.Typer(cls=WithDefault, rich_markup_mode=None, help=help_text)
    else:
        made = typer.Typer(
            rich_markup_mode=None, callback=or_help, invoke_without_command=True, help=help_text
        )
    for name, function in commands.items():
        made.command(name)(function)
    return made


def or_help(context: typer.Context) -> None:
    """Print the help of a group that was called alone."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


class WithDefault(TyperGroup):
    """A group one of whose commands, in capitals, gets what is no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front of what is no command."""
        if not args or (args[0] not in self.commands and args[0] not in HELP_FLAGS):
            args = [next(name for name in self.commands if name.isupper()), *args]
        return super().parse_args(ctx, args)


def quiet_libraries() -> None:
    """No progress bars and deprecation notices of theirs: no news for a user. Errors are still shown."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    for library in ("transformers", "peft"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
