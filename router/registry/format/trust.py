"""Which adapters may be served at all: signed by a key that the operator named, listed by digest, or both.

Asked with an adapter's digest before anything in its files is parsed. A digest says nothing of the folder's
name: an adapter whose manifest gives its name cannot be passed off as another by renaming its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from router.errors import ConfigError
from router.registry.format import minisign
from router.registry.format.findings import Code
from router.registry.format.folder import SIGNATURE
from router.registry.format.minisign import BadSignature, PublicKey, SecretKey, Signature, shown
from router.reread import Reread, read_file

HEX = re.compile(r"(?:sha256:)?([0-9a-f]{64})(?:\s.*)?")
HOW = "`lora-router adapters sign` makes one"


def message_of(digest: str) -> bytes:
    """What is signed for an adapter of this digest, hex."""
    return f"lora-router adapter sha256:{digest}\n".encode()


def sign(digest: str, key: SecretKey, comment: str) -> str:
    """The text of the signature file of an adapter of this digest."""
    return key.sign(message_of(digest), comment).text()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an adapter may not be served."""

    code: Code
    message: str
    where: str = SIGNATURE


class Trust:
    """The keys and the list of an operator. `keys` empty: nothing has to be signed; no lock: any digest."""

    def __init__(self, keys: Sequence[PublicKey] = (), lock: Lock | None = None) -> None:
        self._keys = {key.key_id: key for key in keys}
        self._lock = lock

    @classmethod
    def of(cls, require_signed: Sequence[str], adapters_lock: str) -> Self | None:
        """As the two settings say; None where both are empty. Raises ConfigError."""
        if not require_signed and not adapters_lock:
            return None
        keys = [read_public_key(key) for key in require_signed]
        return cls(keys, Lock(Path(adapters_lock)) if adapters_lock else None)

    def refusal(self, digest: str, signature: bytes | None) -> Refusal | None:
        """None if an adapter of this digest, with this signature file beside it, may be served."""
        if self._keys and (text := self._unsigned(digest, signature)):
            code = Code.SIGNATURE_MISSING if signature is None else Code.SIGNATURE_INVALID
            return Refusal(code, text)
        if self._lock is not None and digest not in self._lock.digests():
            text = f"its digest sha256:{digest} is not in {self._lock.path.name}"
            return Refusal(Code.DIGEST_NOT_LISTED, text, "")
        return None

    @property
    def problem(self) -> str:
        """Why the list as it is now is not in force; empty if it is."""
        return self._lock.problem if self._lock is not None else ""

    def _unsigned(self, digest: str, data: bytes | None) -> str:
        if data is None:
            return f"is missing, and only adapters signed by {self._named()} are served; {HOW}"
        try:
            signature = Signature.parse(data)
        except BadSignature as error:
            return str(error)
        key = self._keys.get(signature.key_id)
        if key is None:
            return f"is by the key {shown(signature.key_id)}, and only those by {self._named()} count"
        try:
            key.check(message_of(digest), signature)
        except BadSignature:
            return (
                "does not fit: the adapter was changed after it was signed, or the signature is another's; "
                f"this one is sha256:{digest}"
            )
        return ""

    def _named(self) -> str:
        return " or ".join(sorted(map(shown, self._keys)))


class Lock:
    """A file of digests, one a line, with anything else after a space. It is read again when it changes.

    A file that cannot be used raises ConfigError at the start. Later the list before stays in force.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Reread([path], self._read)

    def digests(self) -> frozenset[str]:
        """The digests in force, hex. Blocks on the disk."""
        return self._file.value()

    @property
    def problem(self) -> str:
        """Why the file as it is now is not in force; empty if it is. Blocks as `digests` does."""
        self._file.value()
        return self._file.problem

    def _read(self) -> frozenset[str]:
        try:
            return parse_lock(read_file(self.path, private=True).decode("utf-8"))
        except OSError as error:
            raise ConfigError(f"adapters_lock {self.path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"adapters_lock {self.path}: {error}") from None


def parse_lock(text: str) -> frozenset[str]:
    """The digests; `#` begins a line of comment. Raises ValueError with the line."""
    digests = set()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = HEX.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} is no sha256 in hex, followed by a space or nothing")
        digests.add(found[1])
    return frozenset(digests)


def read_public_key(said: str) -> PublicKey:
    """A key by its file, or by the base64 that stands in one. Raises ConfigError."""
    minisign.classes()
    is_file = os.path.isfile(said)
    try:
        return PublicKey.parse(Path(said).read_text(encoding="ascii") if is_file else said)
    except (BadSignature, OSError, ValueError) as error:
        reason = _why(error) if is_file else "no such file, and no public key either"
        raise ConfigError(f"require_signed {said!r}: {reason}") from None


def _why(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
