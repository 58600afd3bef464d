"""`lora-router adapters add|validate|digest`: adapter folders, without a server."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.built_in import is_built_in
from router.classifiers.contract import Classifier
from router.cli import flags, output
from router.cli.command import MISUSED, CliError
from router.cli.output import one_line, print_json

if TYPE_CHECKING:
    from router.config import Settings
    from router.engine.base import BaseInfo
    from router.plugins import PluginHost
    from router.registry.format.artifact import Inspection
    from router.sources.adding import Added, Validate
    from router.types import AdapterProfile


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
    no_base: NoBase = False,
    force: Force = False,
    json: flags.Json = False,
) -> None:
    """Add an adapter from a hub, an object store or a folder.

    Only the files that an adapter may have are fetched, into a place that no server looks into; they are
    checked as `adapters validate` does, and moved into the adapters folder at once. A server that runs takes
    the adapter then as any other that is copied in.

    \b
    Examples:
      lora-router adapters add hub:ORG/NAME@v1.0
      lora-router adapters add hub:ORG/NAME@COMMIT --digest sha256:HEX --name contracts --version 1.0.0
      lora-router adapters add s3://BUCKET/adapters/contracts/1.2.0/
    """
    from router.cli.plugins import plugins_with
    from router.cli.settings import load_settings
    from router.progress import progress_bars
    from router.sources.adding import AddRequest, NameOverride
    from router.sources.adding import add as run
    from router.sources.source import source_of

    settings = load_settings()
    sources = plugins_with("register_adapter_sources", settings).sources()
    wish = AddRequest(
        source_of(said, subfolder, {scheme: entry.make for scheme, entry in sources.items()}),
        adapters_dir or next(iter(settings.adapters_dir), Path("adapters")),
        most_bytes=settings.host_memory_mb << 20,
        wanted=NameOverride(name, version),
        digest=_hex(digest),
        report=report,
        force=force,
        vetted=bool(settings.require_signed or settings.adapters_lock),
    )
    with progress_bars() as progress:
        added = run(wish, _validation(settings, no_base), progress)
    if json:
        print_json(_plain(added))
    else:
        _print_added(added)


def _hex(said: str) -> str:
    found = DIGEST.fullmatch(said)
    if said and found is None:
        raise CliError("--digest is sha256: and 64 digits of hex, as `adapters digest` prints it", MISUSED)
    return found[1] if found else ""


def _validation(settings: Settings, no_base: bool) -> Validate:
    """`adapters validate` with these settings."""
    from router.registry.format.artifact import FolderRules, validate_folder
    from router.registry.format.trust import Trust

    trust = Trust.of(settings.require_signed, settings.adapters_lock)

    def validate(folder: Path) -> Inspection:
        base = None if no_base else base_for(settings.model, [folder])
        rules = FolderRules(base, max_rank=settings.max_rank, trust=trust)
        return _constraint_checked(validate_folder(folder, rules), settings)

    return validate


def _constraint_checked(report: Inspection, settings: Settings) -> Inspection:
    """With a refusal where the constraint of [generation] compiles on no base, or names no template.

    Without llguidance this is not checked, and a note says so.
    """
    from router.engine.constrained.source import check_grammar
    from router.engine.constrained.templates import ConstraintTemplates
    from router.errors import FailedPrecondition, InvalidRequest
    from router.registry.format.untrusted import Code, FolderFinding, Severity

    constraint = report.manifest.generation.constraint
    if constraint is None or constraint.kind == "unconstrained":
        return report
    try:
        if constraint.kind == "from_prompt":
            from router.cli.plugins import plugins_with

            host = plugins_with("register_constraint_templates", settings)
            ConstraintTemplates(host.constraint_templates).check(constraint)
        else:
            check_grammar(constraint)
    except InvalidRequest as error:
        severity, message = Severity.REFUSE, error.violations[0].description
    except FailedPrecondition as error:
        severity, message = Severity.NOTE, f"not checked: {error.message}"
    else:
        return report
    where = f"adapter.toml [generation] {constraint.kind}"
    found = FolderFinding(Code.CONSTRAINT_REFUSED, severity, message, where)
    return replace(report, findings=(*report.findings, found))


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


def _print_added(added: Added) -> None:
    from router.sources.adding import AddOutcome
    from router.sources.transfer import left_out

    folder = added.folder.relative_to(Path.cwd()) if added.folder.is_relative_to(Path.cwd()) else added.folder
    seen = added.validation if added.validation else None
    facts = f", rank {seen.rank}, {output.size(seen.size_bytes)}" if seen else ""
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


Paths = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Adapter folders.")]
Beside = Annotated[
    list[Path] | None,
    typer.Option(
        "--beside",
        metavar="DIR",
        help="Adapters folder that they would be served from; repeatable.",
        show_default=False,
    ),
]


def validate(
    paths: Paths,
    no_base: NoBase = False,
    beside: Beside = None,
    json: flags.Json = False,
) -> None:
    """Check adapter folders, without a server.

    Tells everything that is wrong at once. Exit code 1 if any folder is refused. With --beside, classifiers
    learn the adapters together with those of that folder: how many of their examples would reach them?

    \b
    Examples:
      lora-router adapters validate adapters/medical
      lora-router adapters validate my-adapter --beside adapters
      lora-router adapters validate --json adapters/*
    """
    from router.cli.plugins import plugins_with
    from router.cli.settings import load_settings
    from router.registry.format.artifact import FolderRules, validate_folder
    from router.registry.format.trust import Trust

    settings = load_settings()
    base = None if no_base else base_for(settings.model, paths)
    trust = Trust.of(settings.require_signed, settings.adapters_lock)
    rules = FolderRules(base, max_rank=settings.max_rank, trust=trust)
    reports = [_constraint_checked(validate_folder(path, rules), settings) for path in paths]
    lines: dict[str, list[str]] = {}
    if beside and (own := [report.manifest.profile() for report in reports if report.ok]):
        profiles = {profile.name: profile for profile in (*read_profiles(beside), *own)}
        found = findings_of_fits(plugins_with("register_classifiers", settings), list(profiles.values()))
        lines = {profile.name: found.get(profile.name, []) for profile in own}
    if json:
        print_json([r.to_json() | {"beside": lines.get(r.name, [])} for r in reports])
    else:
        for report in reports:
            _print_report(report)
            for line in lines.get(report.name, ()) if report.ok else ():
                print(f"  routing  {line}")
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def findings_of_fits(host: PluginHost, profiles: Sequence[AdapterProfile]) -> Mapping[str, list[str]]:
    """What the classifiers of these plugins find out about adapters when they learn them, by name."""
    found: dict[str, list[str]] = {}
    for registration in host.registrations():
        classifier = registration.classifier
        if registration.wants_base or type(classifier).findings is Classifier.findings:
            continue
        print(f"classifier {classifier.name} learns {len(profiles)} adapters ...", file=sys.stderr)
        classifier.warmup()
        classifier.fit(profiles)
        for name, line in classifier.findings().items():
            found.setdefault(name, []).append(line)
    return found


def read_profiles(dirs: Sequence[Path]) -> tuple[AdapterProfile, ...]:
    """The highest version of each adapter in these folders, by name, as routing knows it. Raises CliError
    naming what is wrong with a manifest."""
    from router.names import version_key

    found: dict[str, AdapterProfile] = {}
    for folder in _folders(dirs):
        profile = _profile(folder)
        known = found.get(profile.name)
        if known is None or version_key(known.version) < version_key(profile.version):
            found[profile.name] = profile
    return tuple(found[name] for name in sorted(found))


def _folders(dirs: Sequence[Path]) -> Iterator[Path]:
    """Of all versions. As in a server, a folder overrides a later built-in one of its name."""
    seen: set[str] = set()
    for root in dirs:
        children = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
        for child in children:
            if child.name in seen and is_built_in(child, "adapters"):
                continue
            if (child / "adapter.toml").is_file():
                yield child
            else:
                yield from (p for p in sorted(child.iterdir()) if (p / "adapter.toml").is_file())
        seen.update(child.name for child in children)


def _profile(folder: Path) -> AdapterProfile:
    from router.registry.format.manifest import parse_manifest
    from router.registry.format.untrusted import Severity

    path = folder / "adapter.toml"
    manifest, findings = parse_manifest(path.read_bytes(), folder.resolve().name)
    refused = [finding for finding in findings if finding.severity is Severity.REFUSE]
    if refused:
        raise CliError(f"{path}: {refused[0]}")
    return manifest.profile()


def base_for(model: str, paths: Sequence[Path]) -> BaseInfo | None:
    """The base to compare these folders with, if it is here; its digest only where a manifest pins one."""
    from router.cli.base_files import find_base, read_base

    folder = find_base(model)
    return read_base(folder, model, any(map(_pins_digest, paths))) if folder else None


def _pins_digest(path: Path) -> bool:
    """Whether the manifest names its base by digest; a manifest that cannot be read is reported later."""
    try:
        base = tomllib.loads((path / "adapter.toml").read_text(encoding="utf-8")).get("base")
    except (OSError, ValueError):
        return False
    return isinstance(base, dict) and bool(base.get("digest"))


def _print_report(report: Inspection) -> None:

    seen = report
    sites = f"{len(seen.sites)} sites: {', '.join(seen.target_modules)}"
    facts = f"{seen.name}@{seen.version}  rank {seen.rank}  {sites}  {output.size(seen.size_bytes)}"
    if seen.invocation_tokens:
        facts += f"  acts from the tokens {', '.join(map(str, seen.invocation_tokens))} on"
    print(f"{one_line(report.folder)}: {f'ok  {facts}' if report.ok else 'REFUSED'}")
    if report.ok:
        print(f"  routing  {report.routing}")
    for finding in report.findings:
        print(f"  {finding.severity.value}  {finding.code}  {one_line(str(finding))}")
    if not report.base_checked:
        print("  note  modules and shapes were not compared with a base; `lora-router models fetch` gets it")
    if report.ok and not report.values_checked:
        print("  note  values of the weights were not checked")


Folders = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Adapter folders.")]


def digest(paths: Folders) -> None:
    """Print the digests of adapters, one a line.

    As a file given to the setting `adapters_lock`, the lines allow these adapters and no others.

    \b
    Example:
      lora-router adapters digest adapters/* > adapters.lock
    """
    from router.registry.format.artifact import digest_of_folder

    for path in paths:
        print(f"sha256:{digest_of_folder(path)}  {path}")
