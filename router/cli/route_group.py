"""`lora-router route` is a command and a group: what is no name of a sub-command is a prompt."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

DEFAULT = "PROMPT"
HELP = ("--help", "-h")


class PromptOrCommand(TyperGroup):
    """`route calibrate ...` is the sub-command, `route "which ..."` and `route --json hi` go to PROMPT."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front of a prompt."""
        if not args or (args[0] not in self.commands and args[0] not in HELP):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)
