"""TLS of the server: certificate, key and the CA of clients, read again when their files change."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from router.access import certificates
from router.config import Settings
from router.errors import ConfigError
from router.reread import Reread, problem_of, read_file


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold."""

    key: bytes
    chain: bytes
    client_ca: bytes | None
    expires: float = 0.0  # seconds since 1970
    context: ssl.SSLContext = field(default_factory=_context, compare=False)  # for listeners of asyncio


class Tls:
    """The certificate that new connections see. With a CA, clients must show a certificate of it.

    Raises ConfigError where the files cannot be used, as for a certificate that has expired. One that expires
    while it is in force is still shown, since there is no better one: clients refuse it and say why.
    """

    def __init__(
        self, cert: Path, key: Path, client_ca: Path | None, now: Callable[[], float] = time.time
    ) -> None:
        self._now = now
        files = [cert, key, *([client_ca] if client_ca is not None else [])]
        self._file = Reread(files, lambda: read_pems(cert, key, client_ca))
        self._mutual = client_ca is not None

    @classmethod
    def of(cls, settings: Settings) -> Tls | None:
        """None without a certificate. Raises ConfigError."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        if settings.clients is not None and settings.tls_client_ca is not None:
            certificates.check_library()  # certificates name clients then
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    @property
    def problem(self) -> str:
        """Why the files as they are now are not in force; empty if they are."""
        self._file.value()
        return self._file.problem

    @property
    def expires(self) -> float:
        """When the certificate in force ends, in seconds since 1970."""
        return self._file.value().expires

    @property
    def expired(self) -> bool:
        """Whether clients refuse the certificate in force."""
        return self._now() >= self.expires

    @property
    def flaws(self) -> list[str]:
        """What is wrong with the certificate or its files."""
        found = ["the certificate has expired, so clients do not connect"] if self.expired else []
        if why := self.problem:
            found.append(f"the TLS files cannot be used, those from before hold: {why}")
        return found

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`. gRPC asks in a thread of its own at every handshake.

        The library makes a context for each configuration, with ticket keys of its own, so that no session
        outlives a change.
        """
        shown = self._file.value()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            found = self._file.value()
            if found is shown:
                return None
            shown = found
            return _configuration(found)

        return grpc.dynamic_ssl_server_credentials(_configuration(shown), changed, self._mutual)  # type: ignore[arg-type]

    def context(self) -> ssl.SSLContext:
        """For listeners of asyncio: each connection begins with the files that are in force then."""
        return _Newest.of(lambda: self._file.value().context)


class _Newest(ssl.SSLContext):
    """Stands for the context in force when a connection begins.

    A session can be resumed by the context that made it only, since ticket keys and session cache are a
    context's own. A server_name callback is too late: by then the listener's context has resumed the session.
    """

    _in_force: Callable[[], ssl.SSLContext]

    @classmethod
    def of(cls, in_force: Callable[[], ssl.SSLContext]) -> _Newest:
        """`in_force` gives the context."""
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made._in_force = in_force
        return made

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """What asyncio asks for at every connection."""
        return self._in_force().wrap_bio(*arguments, **options)


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.chain)], pems.client_ca)


def read_pems(cert: Path, key: Path, client_ca: Path | None) -> Pems:
    """The files, if they fit together. Raises ConfigError, as for a key that is not of that certificate."""
    before = _read(cert, key, client_ca)
    context = _context()
    try:
        context.load_cert_chain(cert, key, password=_no_password)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
        expires = _end_of(cert)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
        names = ", ".join(str(path) for path in (cert, key, client_ca) if path is not None)
        raise ConfigError(f"TLS cannot use {names}: {reason}") from None
    if _read(cert, key, client_ca) != before:
        raise ConfigError("the TLS files are being written")  # the next look finds them whole
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return replace(before, expires=expires, context=context)


def _end_of(cert: Path) -> float:
    """When a certificate ends. Raises ValueError for one that no client takes: it has expired, or is not
    valid yet."""
    shown: dict[str, str] = ssl._ssl._test_decode_cert(str(cert))  # type: ignore[attr-defined]
    begins, ends = (ssl.cert_time_to_seconds(shown[name]) for name in ("notBefore", "notAfter"))
    if not begins <= time.time() < ends:
        raise ValueError(
            "the certificate is not yet valid" if time.time() < begins else "certificate has expired"
        )
    return float(ends)


def _read(cert: Path, key: Path, client_ca: Path | None) -> Pems:
    try:
        ca = read_file(client_ca, private=True) if client_ca else None
        return Pems(read_file(key, private=True), read_file(cert, private=True), ca)
    except OSError as error:
        raise ConfigError(f"TLS cannot read {problem_of(error)}") from None


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted; a server cannot type a password")
