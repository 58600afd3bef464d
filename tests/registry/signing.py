"""Keys that sign as minisign does, for tests."""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from router.registry.format.artifact import digest_of_folder
from router.registry.format.folder import SIGNATURE
from router.registry.format.trust import (
    ID_BYTES,
    KEY_ALGORITHM,
    KEY_BYTES,
    SIGNATURE_ALGORITHM,
    TRUSTED,
    UNTRUSTED,
    PublicKey,
    message_of,
)


@dataclass(frozen=True, slots=True)
class Signer:
    """A secret key."""

    key_id: bytes
    seed: bytes

    @classmethod
    def make(cls) -> Signer:
        """A new one."""
        return cls(secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES))

    @property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def public(self) -> PublicKey:
        """The key that checks what this one signs."""
        return PublicKey(self.key_id, self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def public_text(self) -> str:
        """The public key as a file."""
        data = base64.b64encode(KEY_ALGORITHM + self.key_id + self.public.key).decode()
        return f"{UNTRUSTED}minisign public key\n{data}\n"

    def signature(self, message: bytes, comment: str = "a test") -> str:
        """The signature of a message as a file."""
        signature = self._key.sign(hashlib.blake2b(message).digest())
        head = base64.b64encode(SIGNATURE_ALGORITHM + self.key_id + signature).decode()
        tail = base64.b64encode(self._key.sign(signature + comment.encode())).decode()
        return f"{UNTRUSTED}signature\n{head}\n{TRUSTED}{comment}\n{tail}\n"

    def sign(self, folder: Path) -> Path:
        """Sign an adapter, and return its folder."""
        (folder / SIGNATURE).write_text(self.signature(message_of(digest_of_folder(folder))))
        return folder
