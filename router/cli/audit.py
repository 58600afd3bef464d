"""`lora-router audit show|verify`: the file of the setting `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli import flags
from router.cli.command import CliError

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the setting `audit`.")]
Who = Annotated[str, typer.Option("--client", metavar="ID", help="Only what this client did.")]
Last = Annotated[int, typer.Option("--last", metavar="N", min=1, help="So many lines from the end.")]
Follows = Annotated[
    str, typer.Option("--after", metavar="HASH", help="The hash that the file before this one ended with.")
]
Has = Annotated[
    str, typer.Option("--has", metavar="HASH", help="A hash that `verify` printed before, kept elsewhere.")
]
COLUMNS = ["TIME", "CLIENT", "FROM", "METHOD", "ABOUT", "CODE", "REASON"]


def show(file: File, client: Who = "", last: Last = 50, json: flags.Json = False) -> None:
    """Show who administered what, and who was refused.

    \b
    Example:
      lora-router audit show audit.jsonl --client billing
    """
    from collections import deque

    from router.access.audit import entries
    from router.cli.output import print_json, print_table

    found = deque((one for one in entries(file) if client in ("", one.get("client"))), maxlen=last)
    if json:
        print_json(list(found))
        return
    keys = ("time", "client", "peer", "method", "resource", "code", "reason")
    rows = [[str(one.get(key, "")) for key in keys] for one in found]
    for one, row in zip(found, rows, strict=True):
        if left_out := one.get("left_out"):
            row[-1] = f"{row[-1]} (and {left_out} refusals more)".strip()
    print_table(COLUMNS, rows)


def verify(file: File, after: Follows = "", has: Has = "") -> None:
    """Follow the chain of hashes.

    Exit code 1 if a line was changed, added or taken out. The chain cannot show a tail that was cut off: keep
    the last line's number, time and hash elsewhere, and ask for that hash later with --has.

    \b
    Examples:
      lora-router audit verify audit.jsonl
      lora-router audit verify audit.jsonl --has HASH
    """
    from router.access.audit import verify as follow

    found = follow(file, has)
    problems = list(found.problems)
    if has and not found.has:
        problems.insert(0, f"no line has the hash {has}: the end was cut off, or the file was written anew")
    if after and found.first != after:
        problems.insert(0, f"it does not follow {after}")
    if problems:
        raise CliError(f"{file}: {'; '.join(problems)}")
    print(f"{file} is whole: {found.lines} lines")
    print(f"follows {found.first}")
    print(f"last line {found.lines}, of {found.time or 'no time'}")
    print(f"ends with {found.last}")
