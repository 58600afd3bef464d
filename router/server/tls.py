"""TLS of the server: certificate, key and the CA of clients, read again when their files change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from router.access.files import Reread
from router.config import Settings
from router.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold."""

    key: bytes
    chain: bytes
    client_ca: bytes | None


class Tls:
    """The certificate that new connections see. With a CA, clients must show a certificate of it.

    Raises ConfigError where the files cannot be used.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        files = [cert, key, *([client_ca] if client_ca is not None else [])]
        self._file = Reread(files, lambda: read_pems(cert, key, client_ca))
        self._mutual = client_ca is not None
        self._shown = self._file.value()

    @classmethod
    def of(cls, settings: Settings) -> Tls | None:
        """None without a certificate."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    @property
    def problem(self) -> str:
        """Why the files as they are now are not in force; empty if they are."""
        self._file.value()
        return self._file.problem

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`. gRPC asks in a thread of its own at every handshake."""
        return grpc.dynamic_ssl_server_credentials(_configuration(self._shown), self._changed, self._mutual)  # type: ignore[arg-type]

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        found = self._file.value()
        if found is self._shown:
            return None
        self._shown = found
        return _configuration(found)


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.chain)], pems.client_ca)


def read_pems(cert: Path, key: Path, client_ca: Path | None) -> Pems:
    """The files, if they fit together. Raises ConfigError, as for a key that is not of that certificate."""
    before = _read(cert, key, client_ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except (ssl.SSLError, ValueError) as error:
        said = getattr(error, "reason", "") or str(error)
        names = ", ".join(str(path) for path in (cert, key, client_ca) if path is not None)
        raise ConfigError(f"TLS cannot use {names}: {said}") from None
    if _read(cert, key, client_ca) != before:
        raise ConfigError("the TLS files are being written")  # the next look finds them whole
    return before


def _read(cert: Path, key: Path, client_ca: Path | None) -> Pems:
    try:
        return Pems(key.read_bytes(), cert.read_bytes(), client_ca.read_bytes() if client_ca else None)
    except OSError as error:
        raise ConfigError(f"TLS cannot read {error.filename}: {error.strerror}") from None


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted; a server cannot type a password")
