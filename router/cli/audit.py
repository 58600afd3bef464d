"""`lora-router audit verify`: the file of the setting `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli.command import CliError

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the setting `audit`.")]
Follows = Annotated[
    str, typer.Option("--after", metavar="HASH", help="The hash that the file before this one ended with.")
]
Has = Annotated[
    str, typer.Option("--has", metavar="HASH", help="A hash that `verify` printed before, kept elsewhere.")
]


def verify(file: File, after: Follows = "", has: Has = "") -> None:
    """Verify the chain of hashes of an audit file.

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
