"""`lora-router adapters digest|keygen|sign`: what --require-signed and --adapters-lock ask for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.command import CliError

if TYPE_CHECKING:
    from router.registry.format.trust import SecretKey

Folders = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Adapter folders.")]
KeyFile = Annotated[Path, typer.Option("--key", metavar="FILE", help="Secret key, as `keygen` writes it.")]
PUBLIC_SUFFIX = ".pub"


def digest(paths: Folders) -> None:
    """Print the digests of adapters, one a line.

    As a file given to `serve --adapters-lock`, the lines allow these adapters and no others.

    \b
    Example:
      lora-router adapters digest adapters/* > adapters.lock
    """
    from router.registry.format.artifact import digest_of_folder

    for path in paths:
        print(f"sha256:{digest_of_folder(path)}  {path}")


def keygen(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="For the secret key; FILE.pub is the public one.")
    ],
) -> None:
    """Make a key that signs adapters.

    The secret key has no password: keep it away from the servers, which need the public one alone. Both are
    as minisign writes them.

    \b
    Example:
      lora-router adapters keygen release.key
    """
    from router.registry.format.trust import SecretKey, write_secret

    public = path.with_name(path.name + PUBLIC_SUFFIX)
    if path.exists() or public.exists():
        raise CliError(f"{path} or {public} exists already; a key is never overwritten")
    key = SecretKey.make()
    write_secret(path, key)
    public.write_text(key.public.text(), encoding="ascii")
    print(f"wrote {path} (secret) and {public}\n\n  lora-router adapters sign FOLDER --key {path}")
    print(f"  lora-router serve --require-signed {public}")


def sign(paths: Folders, key: KeyFile) -> None:
    """Sign adapters.

    Writes adapter.sig into each folder: a signature of the adapter's digest, which covers adapter.toml,
    adapter_config.json, the weights and the probes. Nothing is checked but that the files are there.

    \b
    Example:
      lora-router adapters sign adapters/medical --key release.key
    """
    from router.cli.output import one_line
    from router.registry.format.artifact import digest_of_folder
    from router.registry.format.folder import MANIFEST, SIGNATURE
    from router.registry.format.trust import shown
    from router.registry.format.trust import sign as signature_of

    secret = _secret_key(key)
    digests = [(path, digest_of_folder(path)) for path in paths]
    for path, value in digests:
        comment = f"timestamp:{int(time.time())}\tfile:{one_line(path.absolute().name)}\thashed"
        staged = path / f".{SIGNATURE}.part"
        staged.write_text(signature_of(value, secret, comment), encoding="utf-8")
        staged.replace(path / SIGNATURE)
        print(f"signed {path} (sha256:{value}) by {shown(secret.key_id)}")
        if not (path / MANIFEST).is_file():
            print(f"  it has no {MANIFEST}, so its name is the folder's, which the signature does not cover")


def _secret_key(path: Path) -> SecretKey:
    from router.registry.format.trust import BadSignature, SecretKey

    try:
        return SecretKey.parse(path.read_text(encoding="utf-8"))
    except (BadSignature, UnicodeDecodeError) as error:
        raise CliError(f"{path}: {error}") from None
