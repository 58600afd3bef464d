"""Commands with sub-commands; `lora-router route` is both: what is no name of a sub-command is a prompt."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

DEFAULT = "PROMPT"
HELP = ("--help", "-h")


def or_help(context: typer.Context) -> None:
    """Print the help of a group that was called alone."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def group(help_text: str, **commands: object) -> typer.Typer:
    """A command with sub-commands, in the order given."""
    made = typer.Typer(rich_markup_mode=None, callback=or_help, invoke_without_command=True, help=help_text)
    for name, function in commands.items():
        made.command(name)(function)  # type: ignore[type-var]
    return made


class PromptOrCommand(TyperGroup):
    """`route calibrate ...` is the sub-command, `route "which ..."` and `route --json hi` go to PROMPT."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front of a prompt."""
        if not args or (args[0] not in self.commands and args[0] not in HELP):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)
