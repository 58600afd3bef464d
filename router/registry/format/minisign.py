"""Keys and signatures as the minisign tool writes them: Ed25519, by the library `cryptography`.

A file is a line of comment and a line of base64; a signature has a second pair, a comment that is signed too.
Signatures are of the message's BLAKE2b-512 ("ED", what minisign makes by default). Secret keys have no
password here: one that has is used with the tool itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from router.errors import ConfigError, install_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

KEY_ALGORITHM, SIGNATURE_ALGORITHM, CHECKSUM = b"Ed", b"ED", b"B2"
ID_BYTES, KEY_BYTES, SIGNATURE_BYTES = 8, 32, 64
UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "
# Algorithms of key, encryption and checksum; salt and two limits of the encryption; id, seed, key, checksum
_SECRET = struct.Struct("2s2s2s 32s8s8s 8s32s32s32s")


class BadSignature(Exception):
    """A text is no signature or key, or a signature does not fit; the text is for the operator."""


def classes() -> tuple[type[ed25519.Ed25519PublicKey], type[ed25519.Ed25519PrivateKey]]:
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
        public, _ = classes()
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
        _, private = classes()
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
        _, private = classes()
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
