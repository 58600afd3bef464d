"""`lora-router adapters add`: an adapter from a hub, an object store or a folder into the adapters folder."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError

if TYPE_CHECKING:
    from router.config import Settings
    from router.sources.adding import Added, Validate
    from router.sources.transfer import Progress

Said = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="hub:ORG/NAME@REVISION, s3://BUCKET/KEY/ or another store, a plugin's SCHEME:, or a folder.",
        show_default=False,
    ),
]
AdaptersDir = Annotated[
    Path | None,
    typer.Option(
        "--adapters-dir", metavar="DIR", help="Where to. Default: the adapters folder of the settings."
    ),
]
Name = Annotated[
    str, typer.Option("--name", metavar="NAME", help="What to call it, where its adapter.toml does not say.")
]
Version = Annotated[str, typer.Option("--version", metavar="VERSION", help="The same for its version.")]
Subfolder = Annotated[
    str, typer.Option("--subfolder", metavar="PATH", help="The folder in the source that holds the adapter.")
]
Digest = Annotated[
    str, typer.Option("--digest", metavar="sha256:HEX", help="Take these very bytes and no others.")
]
Report = Annotated[
    bool, typer.Option("--report", help="Take its report.json, too: routing will rely on what it claims.")
]
MaxBytes = Annotated[
    int | None,
    typer.Option("--max-bytes", metavar="N", min=1, help="Most bytes fetched. Default: host_memory_mb."),
]
Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Base to compare with. Default: the one served.")
]
NoBase = Annotated[bool, typer.Option("--no-base", help="Do not compare modules and shapes with a base.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a version that has other contents.")]
DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


def add(
    said: Said,
    adapters_dir: AdaptersDir = None,
    name: Name = "",
    version: Version = "",
    subfolder: Subfolder = "",
    digest: Digest = "",
    report: Report = False,
    max_bytes: MaxBytes = None,
    model: Model = "",
    no_base: NoBase = False,
    force: Force = False,
    json: flags.Json = False,
) -> None:
    """Add an adapter from a hub, an object store or a folder.

    Only the files that an adapter may have are fetched, into a place that no server looks into; they are
    checked as `adapters validate` does, and moved into the adapters folder at once. Ctrl-C keeps what came:
    the same command goes on. A server that runs takes the adapter then as any other that is copied in.

    \b
    Examples:
      lora-router adapters add hub:ORG/NAME@v1.0
      lora-router adapters add hub:ORG/NAME@COMMIT --digest sha256:HEX --name contracts --version 1.0.0
      lora-router adapters add s3://BUCKET/adapters/contracts/1.2.0/
    """
    from router.cli.output import print_json
    from router.cli.plugins import plugins_with
    from router.cli.settings import load_settings
    from router.sources.adding import AddRequest, NameOverride
    from router.sources.adding import add as run
    from router.sources.source import source_of

    settings = load_settings({"model": model} if model else None)
    sources = plugins_with("register_adapter_sources", settings).sources()
    wish = AddRequest(
        source_of(said, subfolder, {scheme: entry.source for scheme, entry in sources.items()}),
        adapters_dir
        or next((one for one in settings.adapters_dir if isinstance(one, Path)), Path("adapters")),
        most_bytes=max_bytes or settings.host_memory_mb << 20,
        wanted=NameOverride(name, version),
        digest=_hex(digest),
        report=report,
        force=force,
        vetted=bool(settings.require_signed or settings.adapters_lock),
    )
    with _shown() as progress:
        added = run(wish, _validation(settings, no_base), progress, _pause)
    if json:
        print_json(_plain(added))
    else:
        _print(added)


def _hex(said: str) -> str:
    found = DIGEST.fullmatch(said)
    if said and found is None:
        raise CliError("--digest is sha256: and 64 digits of hex, as `adapters digest` prints it", MISUSED)
    return found[1] if found else ""


def _validation(settings: Settings, no_base: bool) -> Validate:
    """`adapters validate` with these settings."""
    from router.cli.adapters.validate import base_for
    from router.registry.format.artifact import FolderRules, Validation, validate_folder
    from router.registry.format.trust import Trust

    trust = Trust.of(settings.require_signed, settings.adapters_lock)

    def validate(folder: Path) -> Validation:
        base = None if no_base else base_for(settings.model, [folder])
        return validate_folder(folder, FolderRules(base, max_rank=settings.max_rank, trust=trust))

    return validate


@contextmanager
def _shown() -> Iterator[Progress]:
    """A bar for each file on a terminal, else a line; and what stays after Ctrl-C."""
    from router.cli.output import fetching

    seen: set[str] = set()
    with fetching() as bars:

        def progress(name: str, done: int, total: int) -> None:
            seen.add(name)
            bars(name, done, total)

        try:
            yield progress
        except KeyboardInterrupt:
            if seen:
                print("\nwhat came is kept; the same command goes on", file=sys.stderr)
            raise


def _pause(fault: str, seconds: float) -> None:
    from router.cli.output import one_line

    print(f"{one_line(fault)}; again in {seconds:g} s", file=sys.stderr)
    time.sleep(seconds)


def _plain(added: Added) -> dict[str, object]:
    origin = added.origin
    findings = added.validation.to_json()["findings"] if added.validation else []
    return {
        "outcome": added.outcome,
        "name": added.ref.name,
        "version": added.ref.version,
        "folder": added.folder,
        "source": origin.source,
        "subfolder": origin.subfolder,
        "pin": origin.pin,
        "digest": f"sha256:{origin.digest}",
        "license": origin.license,
        "left": added.left,
        "findings": findings,
        "base_checked": added.validation.base_checked if added.validation else None,
    }


def _print(added: Added) -> None:
    from router.cli import units
    from router.cli.output import one_line
    from router.sources.adding import AddOutcome
    from router.sources.transfer import left_out

    folder = added.folder.relative_to(Path.cwd()) if added.folder.is_relative_to(Path.cwd()) else added.folder
    seen = added.validation.inspection if added.validation else None
    facts = f", rank {seen.rank}, {units.size(seen.size_bytes)}" if seen else ""
    what = {
        AddOutcome.PRESENT: "is there already, the same bytes, in",
        AddOutcome.REPORTED: "was there already; its report came to",
    }.get(added.outcome, f"{added.outcome} in")
    print(f"{added.ref} {what} {one_line(str(folder))}{facts}")
    commit = f", commit {added.origin.pin}" if added.origin.source.startswith("hub:") else ""
    print(f"  from {one_line(added.origin.source)}{commit}\n  digest sha256:{added.origin.digest}")
    if added.origin.license:
        print(f"  licence, as its README says: {added.origin.license}")
    for finding in seen.findings if seen else ():
        print(f"  {finding.severity.value}  {finding.code}  {one_line(str(finding))}")
    if added.validation and not added.validation.base_checked:
        print("  note  modules and shapes were not compared with a base; `lora-router models fetch` gets it")
    if added.left:
        print(f"  not taken: {left_out(added.left)}")
    if added.outcome is AddOutcome.ADDED and not (added.folder / "report.json").is_file():
        print(f'\nit answers by name: lora-router ask --adapter {added.ref.name} "..."')
