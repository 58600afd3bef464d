"""Which adapters may be served at all: signed by a key that the operator named, listed by digest, or both.

The check has an adapter's digest before anything in its files is parsed. A digest says nothing of the
folder's name: an adapter whose manifest gives its name cannot be passed off as another by renaming its
folder.

Keys and signatures are as the minisign tool writes them: Ed25519, by the library `cryptography`. A file is a
line of comment and a line of base64; a signature has a second pair, a comment that is signed too. Signatures
are of the message's BLAKE2b-512 ("ED", what minisign makes by default). Secret keys have no password here:
one that has is used with the tool itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from router.errors import ConfigError, install_extra
from router.registry.format.folder import SIGNATURE
from router.registry.format.untrusted import Code
from router.reread import Reread, read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

KEY_ALGORITHM, SIGNATURE_ALGORITHM, CHECKSUM = b"Ed", b"ED", b"B2"
ID_BYTES, KEY_BYTES, SIGNATURE_BYTES = 8, 32, 64
UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "
# Algorithms of key, encryption and checksum; salt and two limits of the encryption; id, seed, key, checksum
_SECRET = struct.Struct("2s2s2s 32s8s8s 8s32s32s32s")


class BadSignature(Exception):
    """A text is no signature or key, or a signature does not fit; the text is for the operator."""


def ed25519_classes() -> tuple[type[ed25519.Ed25519PublicKey], type[ed25519.Ed25519PrivateKey]]:
    """The library's, for public and for secret keys; imported where signatures are used.

    Raises ConfigError where it is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        text = f"signatures need the package cryptography: {install_extra('signed')}"
        raise ConfigError(text) from None

    return ed25519.Ed25519PublicKey, ed25519.Ed25519PrivateKey


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

    def text(self) -> str:
        """As a file."""
        head = base64.b64encode(SIGNATURE_ALGORITHM + self.key_id + self.signature).decode()
        tail = base64.b64encode(self.comment_signature).decode()
        return f"{UNTRUSTED}signature of a lora-router adapter\n{head}\n{TRUSTED}{self.comment}\n{tail}\n"


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

    def text(self) -> str:
        """As a file."""
        data = base64.b64encode(KEY_ALGORITHM + self.key_id + self.key).decode()
        return f"{UNTRUSTED}minisign public key {shown(self.key_id)}\n{data}\n"

    def check(self, message: bytes, signature: Signature) -> None:
        """Raises BadSignature unless this key signed both the message and the comment."""
        public, _ = ed25519_classes()
        from cryptography.exceptions import InvalidSignature

        try:
            key = public.from_public_bytes(self.key)
            key.verify(signature.signature, _hashed(message))
            key.verify(signature.comment_signature, signature.signature + signature.comment.encode())
        except (InvalidSignature, ValueError):
            raise BadSignature("does not fit") from None


@dataclass(frozen=True, slots=True, repr=False)
class SecretKey:
    """Signs. It is never shown: it has no repr."""

    key_id: bytes
    seed: bytes

    @classmethod
    def make(cls) -> Self:
        """A new key."""
        return cls(secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """A secret key file without a password. Raises BadSignature."""
        lines = _lines(text.encode(), 2)
        data = _decoded(lines[1], _SECRET.size)
        algorithm, encryption, checksum, *_, key_id, seed, key, summed = _SECRET.unpack(data)
        if algorithm != KEY_ALGORITHM or checksum != CHECKSUM:
            raise BadSignature("is not a minisign secret key")
        if encryption != bytes(2):
            raise BadSignature(
                "has a password: sign with minisign itself, or make a key without (minisign -GW)"
            )
        found = cls(key_id, seed)
        if summed not in (found._checksum(), bytes(32)) or found.public.key != key:
            raise BadSignature("is damaged")
        return found

    @property
    def public(self) -> PublicKey:
        """The key that checks what this one signs."""
        _, private = ed25519_classes()
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = private.from_private_bytes(self.seed).public_key()
        return PublicKey(self.key_id, key.public_bytes(Encoding.Raw, PublicFormat.Raw))

    def text(self) -> str:
        """As a file; keep it secret."""
        no_password = (bytes(2), CHECKSUM, bytes(32), bytes(8), bytes(8))
        data = _SECRET.pack(
            KEY_ALGORITHM, *no_password, self.key_id, self.seed, self.public.key, self._checksum()
        )
        comment = f"{UNTRUSTED}minisign secret key {shown(self.key_id)}, without a password"
        return f"{comment}\n{base64.b64encode(data).decode()}\n"

    def sign(self, message: bytes, comment: str) -> Signature:
        """`comment` is one line and signed too."""
        _, private = ed25519_classes()
        key = private.from_private_bytes(self.seed)
        signature = key.sign(_hashed(message))
        return Signature(self.key_id, signature, comment, key.sign(signature + comment.encode()))

    def _checksum(self) -> bytes:
        key = self.seed + self.public.key
        return hashlib.blake2b(KEY_ALGORITHM + self.key_id + key, digest_size=32).digest()


def write_secret(path: str | os.PathLike[str], key: SecretKey) -> None:
    """A new file that its owner alone may read. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(key.text())


def _hashed(message: bytes) -> bytes:
    return hashlib.blake2b(message).digest()


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


def read_public_key(text: str) -> PublicKey:
    """A key by its file, or by the base64 that stands in one. Raises ConfigError."""
    ed25519_classes()
    is_file = os.path.isfile(text)
    try:
        return PublicKey.parse(Path(text).read_text(encoding="ascii") if is_file else text)
    except (BadSignature, OSError, ValueError) as error:
        reason = _reason(error) if is_file else "no such file, and no public key either"
        raise ConfigError(f"require_signed {text!r}: {reason}") from None


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
