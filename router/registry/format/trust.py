"""Which adapters may be served at all: signed by a key that the operator named, listed by digest, or both.

The check has an adapter's digest before anything in its files is parsed. A digest says nothing of the
folder's name: an adapter whose manifest gives its name cannot be passed off as another by renaming its
folder.

Keys and signatures are as the minisign tool writes them: Ed25519, by the library `cryptography`. A file is a
line of comment and a line of base64; a signature has a second pair, a comment that is signed too. Signatures
are of the message's BLAKE2b-512 ("ED", what minisign makes by default). The tool alone signs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from router.errors import ConfigError, install_extra
from router.registry.format.folder import SIGNATURE
from router.registry.format.untrusted import Code, FolderFindings
from router.reread import Reread, read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEY_ALGORITHM, SIGNATURE_ALGORITHM = b"Ed", b"ED"
ID_BYTES, KEY_BYTES, SIGNATURE_BYTES = 8, 32, 64
UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "


class BadSignature(Exception):
    """A text is no signature or key, or a signature does not fit; the text is for the operator."""


def public_key_class() -> type[Ed25519PublicKey]:
    """The library's; imported where signatures are checked. Raises ConfigError where it is not installed."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError:
        text = f"signatures need the package cryptography: {install_extra('signed')}"
        raise ConfigError(text) from None
    return Ed25519PublicKey


def shown(key_id: bytes) -> str:
    """A key's id as the tool shows it: little-endian, in capitals."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature file, parsed and not yet checked."""

    key_id: bytes
    signature: bytes
    comment: str  # covered by `comment_signature`
    comment_signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises BadSignature."""
        lines = _lines(data, 4)
        if not lines[0].startswith(UNTRUSTED) or not lines[2].startswith(TRUSTED):
            raise BadSignature("is not a minisign signature")
        head = _decoded(lines[1], 2 + ID_BYTES + SIGNATURE_BYTES)
        if head[:2] != SIGNATURE_ALGORITHM:
            raise BadSignature("has an algorithm other than ED: sign without -l")
        key_id, signature = head[2 : 2 + ID_BYTES], head[2 + ID_BYTES :]
        return cls(key_id, signature, lines[2][len(TRUSTED) :], _decoded(lines[3], SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Checks signatures."""

    key_id: bytes
    key: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """A public key file, or its second line alone. Raises BadSignature."""
        lines = text.strip().splitlines()
        if not lines or len(lines) > 2 or (len(lines) == 2 and not lines[0].startswith(UNTRUSTED)):
            raise BadSignature("is not a minisign public key")
        data = _decoded(lines[-1], 2 + ID_BYTES + KEY_BYTES)
        if data[:2] != KEY_ALGORITHM:
            raise BadSignature("is not a minisign public key")
        return cls(data[2 : 2 + ID_BYTES], data[2 + ID_BYTES :])

    def check(self, message: bytes, signature: Signature) -> None:
        """Raises BadSignature unless this key signed both the message and the comment."""
        public = public_key_class()
        from cryptography.exceptions import InvalidSignature

        try:
            key = public.from_public_bytes(self.key)
            key.verify(signature.signature, hashlib.blake2b(message).digest())
            key.verify(signature.comment_signature, signature.signature + signature.comment.encode())
        except (InvalidSignature, ValueError):
            raise BadSignature("does not fit") from None


def _lines(data: bytes, count: int) -> list[str]:
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise BadSignature("is not text") from None
    if len(lines) != count:
        raise BadSignature(f"has {len(lines)} lines and not {count}: it is cut, or something else")
    return [line.removesuffix("\r") for line in lines]


def _decoded(line: str, size: int) -> bytes:
    try:
        data = base64.b64decode(line.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise BadSignature("holds what is not base64: it is cut, or something else") from None
    if len(data) != size:
        raise BadSignature(f"holds {len(data)} bytes and not {size}: it is cut, or something else")
    return data


# -- the keys and the list of an operator


HEX = re.compile(r"(?:sha256:)?([0-9a-f]{64})(?:\s.*)?")
HOW = "minisign makes one (docs/adapter-format.md, Signed adapters)"


def message_of(digest: str) -> bytes:
    """What is signed for an adapter of this digest, hex."""
    return f"lora-router adapter sha256:{digest}\n".encode()


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

    def check(self, digest: str, signature: bytes | None, found: FolderFindings) -> None:
        """Refuse an adapter of this digest, with this signature file beside it, if it may not be served."""
        if self._keys and (text := self._unsigned(digest, signature)):
            code = Code.SIGNATURE_MISSING if signature is None else Code.SIGNATURE_INVALID
            found.refuse(code, text, SIGNATURE)
        elif self._lock is not None and digest not in self._lock.digests():
            text = f"its digest sha256:{digest} is not in {self._lock.path.name}"
            found.refuse(Code.DIGEST_NOT_LISTED, text)

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


def read_public_key(text: str) -> PublicKey:
    """A key by its file, or by the base64 that stands in one. Raises ConfigError."""
    public_key_class()
    is_file = os.path.isfile(text)
    try:
        return PublicKey.parse(Path(text).read_text(encoding="ascii") if is_file else text)
    except (BadSignature, OSError, ValueError) as error:
        reason = _reason(error) if is_file else "no such file, and no public key either"
        raise ConfigError(f"require_signed {text!r}: {reason}") from None


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
