"""TLS and client certificates: who is refused before any call, and certificates that change under traffic."""

from __future__ import annotations

import asyncio
import shlex
import socket
import ssl
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx2
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from router.cli.main import run
from router.cli.summary import lines_to_paste
from router.client import AsyncClient, Client, ClientError
from router.config import Settings
from router.errors import ConfigError
from router.server.app import ServerApp
from router.server.tls import Tls, read_pems
from router.v1 import inference_pb2_grpc
from tests.security.helpers import write_clients
from tests.server.helpers import Start, ask, details, failure, long_stream, until

HOST = "127.0.0.1"


class Files:
    """A CA, the server's certificate and key, and a client's, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, trustme.CA()
        self.ca, self.cert, self.key = (folder / name for name in ("ca.pem", "server.pem", "server.key"))
        self.authority.cert_pem.write_to_path(self.ca)
        self.renew()

    def renew(self, authority: trustme.CA | None = None, **times: datetime) -> None:
        """A new certificate for the server."""
        made = (authority or self.authority).issue_cert(HOST, **times)
        made.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))

    def named(self, *names: x509.GeneralName) -> dict[str, Path]:
        """A client's certificate of the CA with exactly these names (SANs), as arguments of a client."""
        ca, key = self.authority, ec.generate_private_key(ec.SECP256R1())
        signer = load_pem_private_key(ca.private_key_pem.bytes(), None)
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")]))
            .issuer_name(x509.load_pem_x509_certificate(ca.cert_pem.bytes()).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
        )
        paths = {"client_cert": self.folder / "named.pem", "client_key": self.folder / "named.key"}
        paths["client_cert"].write_bytes(made.public_bytes(Encoding.PEM))
        plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        paths["client_key"].write_bytes(key.private_bytes(*plain))
        return paths

    def client(self, name: str, authority: trustme.CA | None = None) -> dict[str, Path]:
        """A client's certificate with that name, as arguments of a client."""
        made = (authority or self.authority).issue_cert(name)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        made.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        return {"client_cert": cert, "client_key": key}

    @property
    def settings(self) -> dict[str, Path]:
        return {"tls_cert": self.cert, "tls_key": self.key}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def code_of(target: str, **secured: Any) -> str:
    """How a call over a connection of its own ends, and why."""
    async with AsyncClient(target, timeout=3, **secured) as client:
        try:
            await client.route("hi")
        except ClientError as error:
            return error.reason or error.code
    return "OK"


async def test_tls_with_a_token(start_server: Start, files: Files, tmp_path: Path) -> None:
    clients = write_clients(tmp_path)
    server = await start_server(clients=clients.path, **files.settings)
    target = server.address
    assert await code_of(target, tls_ca=files.ca, token=clients.infer) == "OK"
    assert await code_of(target, tls_ca=files.ca, token=clients.observe) == "ROLE_MISSING"
    assert await code_of(target, tls_ca=files.ca) == "TOKEN_MISSING"
    assert await code_of(target, token=clients.infer) == "UNAVAILABLE"  # plain text
    trustme.CA().cert_pem.write_to_path(tmp_path / "foreign.pem")
    assert await code_of(target, tls_ca=tmp_path / "foreign.pem") == "UNAVAILABLE"

    def in_a_thread() -> str:
        with Client(target, tls_ca=files.ca, token=clients.infer, timeout=3) as client:
            return client.generate("hi there").text

    assert await asyncio.to_thread(in_a_thread)


async def test_a_certificate_says_who_calls(start_server: Start, files: Files, tmp_path: Path) -> None:
    clients = tmp_path / "clients.toml"
    clients.write_text('[[client]]\nid = "billing"\ncert = "billing.svc.example"\nroles = ["infer"]\n')
    server = await start_server(clients=clients, tls_client_ca=files.ca, **files.settings)
    ca = {"tls_ca": files.ca}
    assert await code_of(server.address, **ca, **files.client("billing.svc.example")) == "OK"
    assert await code_of(server.address, **ca, **files.client("other.svc.example")) == "TOKEN_INVALID"
    assert await code_of(server.address, **ca, **files.client("x.billing.svc.example")) == "TOKEN_INVALID"
    assert await code_of(server.address, **ca) == "UNAVAILABLE"
    foreign = files.client("billing.svc.example", trustme.CA())
    assert await code_of(server.address, **ca, **foreign) == "UNAVAILABLE"


RULES = {
    "billing.example": "dns",
    "dns:explicit.example": "dns",
    "spiffe://cluster/billing": "uri",
    "ops@billing.example": "email",
}


async def over_http(server: ServerApp, files: Files, shown: dict[str, Path]) -> int:
    """The status of the list of models, for who shows that certificate."""
    trusted = ssl.create_default_context(cafile=files.ca)
    trusted.load_cert_chain(shown["client_cert"], shown["client_key"])
    async with httpx2.AsyncClient(verify=trusted, base_url=f"https://{server.http_address}") as client:
        return (await client.get("/v1/models")).status_code


@pytest.fixture
async def mutual(start_server: Start, files: Files, tmp_path: Path) -> ServerApp:
    """A server, over gRPC and HTTP, with a client for each of `RULES`."""
    clients = tmp_path / "clients.toml"
    entries = (
        f'[[client]]\nid = "c{i}"\ncert = "{rule}"\nroles = ["infer"]\nadapters = ["*"]\n'
        for i, rule in enumerate(RULES)
    )
    clients.write_text("".join(entries))
    settings = {"clients": clients, "http_listen": f"{HOST}:0", **files.settings}
    return await start_server(tls_client_ca=files.ca, **settings)


URI, DNS, EMAIL = x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name


@pytest.mark.parametrize(
    "name",
    [
        DNS("billing.example"),
        DNS("explicit.example"),
        URI("spiffe://cluster/billing"),
        EMAIL("ops@billing.example"),
    ],
    ids=repr,
)
async def test_a_name_of_the_kind_of_the_rule_is_the_client(
    mutual: ServerApp, files: Files, name: x509.GeneralName
) -> None:
    shown = files.named(name)
    assert await code_of(mutual.address, tls_ca=files.ca, **shown) == "OK"
    assert await over_http(mutual, files, shown) == 200


@pytest.mark.parametrize(
    "name",
    [
        DNS("billing.example\0.evil.example"),
        DNS("billing.example\0"),
        DNS("\0billing.example"),
        URI("billing.example"),
        EMAIL("billing.example"),
        URI("explicit.example"),
        DNS("spiffe://cluster/billing"),
        EMAIL("spiffe://cluster/billing"),
        DNS("ops@billing.example"),
        URI("ops@billing.example"),
        DNS("BILLING.example"),
        DNS("dns:billing.example"),
        URI("dns:billing.example"),
        DNS._init_without_validation("billing.examplé"),
    ],
    ids=repr,
)
async def test_a_name_that_only_looks_like_it_is_not_the_client(
    mutual: ServerApp, files: Files, name: x509.GeneralName
) -> None:
    shown = files.named(name)
    assert await code_of(mutual.address, tls_ca=files.ca, **shown) in ("TOKEN_INVALID", "UNAVAILABLE")
    assert await over_http(mutual, files, shown) == 401


async def test_one_bad_name_spoils_the_good_ones_of_a_certificate(mutual: ServerApp, files: Files) -> None:
    shown = files.named(DNS("billing.example"), DNS("x\0y"))
    assert await code_of(mutual.address, tls_ca=files.ca, **shown) == "TOKEN_INVALID"
    assert await over_http(mutual, files, shown) == 401


def resuming(
    address: str, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bool, ssl.SSLSession]:
    """Whether a connection resumed that session, and the session that it got. Raises OSError if refused."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=HOST, session=session) as secure,
    ):
        # TLS 1.3 sends its sessions after the handshake, before the first answer.
        if secure.selected_alpn_protocol() == "h2":
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        else:
            secure.sendall(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        if not secure.recv(1000):
            raise ConnectionResetError("hung up")
        assert secure.session is not None
        return bool(secure.session_reused), secure.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("tickets", [True, False], ids=["tickets", "ids"])
@pytest.mark.parametrize("listener", ["http", "grpc"])
async def test_no_session_is_resumed_after_a_change_of_the_client_ca(
    mutual: ServerApp, files: Files, version: ssl.TLSVersion, tickets: bool, listener: str
) -> None:
    address = mutual.http_address if listener == "http" else mutual.address
    context = ssl.create_default_context(cafile=files.ca)
    context.minimum_version = context.maximum_version = version
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
    if listener == "grpc":
        context.set_alpn_protocols(["h2"])
    context.load_cert_chain(*files.client("billing.example").values())
    _, session = await asyncio.to_thread(resuming, address, context, None)
    before, session = await asyncio.to_thread(resuming, address, context, session)
    assert before or (listener == "http" and not tickets)  # OpenSSL resumes no id of TLS 1.2
    trustme.CA().cert_pem.write_to_path(files.ca)
    for _ in range(3):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(resuming, address, context, session)


async def test_a_session_is_resumed_while_nothing_changes_and_not_after_a_new_certificate(
    mutual: ServerApp, files: Files
) -> None:
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(*files.client("billing.example").values())
    _, session = await asyncio.to_thread(resuming, mutual.http_address, context, None)
    for _ in range(3):
        reused, session = await asyncio.to_thread(resuming, mutual.http_address, context, session)
        assert reused
    files.renew()
    reused, _ = await asyncio.to_thread(resuming, mutual.http_address, context, session)
    assert not reused


async def test_a_hundred_new_certificates_under_traffic(
    start_server: Start, files: Files, fakes: SimpleNamespace
) -> None:
    """Running calls finish, every new connection succeeds, and sees the newest certificate."""
    fakes.engine.step_seconds = 0.01
    server = await start_server(**vars(fakes), **files.settings)
    authorities = [trustme.CA() for _ in range(2)]
    for i, authority in enumerate(authorities):
        authority.cert_pem.write_to_path(files.folder / f"{i}.pem")
    roots = b"".join((files.folder / f"{i}.pem").read_bytes() for i in range(2)) + files.ca.read_bytes()
    every = grpc.ssl_channel_credentials(roots)
    local = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(server.address, every, options=local) as old:
        stub = inference_pb2_grpc.InferenceServiceStub(old)
        running = stub.StreamGenerate(long_stream(200))
        await anext(aiter(running))
        for turn in range(100):
            files.renew(authorities[turn % 2])
            only = grpc.ssl_channel_credentials((files.folder / f"{turn % 2}.pem").read_bytes())
            async with grpc.aio.secure_channel(server.address, only, options=local) as new:
                assert (await inference_pb2_grpc.InferenceServiceStub(new).Generate(ask(), timeout=10)).text
        assert [message async for message in running]


async def test_a_bad_certificate_leaves_the_old_one(start_server: Start, files: Files) -> None:
    server = await start_server(**files.settings)
    files.key.write_bytes(trustme.CA().issue_cert(HOST).private_key_pem.bytes())
    assert await code_of(server.address, tls_ca=files.ca) == "OK"
    server.look()
    assert server.metrics.registry.get_sample_value("lora_router_credentials_stale", {"file": "tls"})
    files.renew()
    assert await code_of(server.address, tls_ca=files.ca) == "OK"
    server.look()
    assert not server.metrics.registry.get_sample_value("lora_router_credentials_stale", {"file": "tls"})


def spoil(name: str, content: bytes | None) -> Callable[[Files], None]:
    def spoiled(files: Files) -> None:
        path: Path = getattr(files, name)
        path.unlink() if content is None else path.write_bytes(content)

    return spoiled


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (spoil("cert", None), "cannot read"),
        (spoil("cert", b"no certificate"), "cannot use"),
        (spoil("key", b""), "cannot use"),
        (spoil("ca", b"junk"), "cannot use"),
    ],
)
def test_files_that_do_not_fit_are_an_error_at_start(
    files: Files, spoiled: Callable[[Files], None], said: str
) -> None:
    assert read_pems(files.cert, files.key, files.ca).client_ca == files.ca.read_bytes()
    spoiled(files)
    with pytest.raises(ConfigError, match=said):
        Tls(files.cert, files.key, files.ca)


@pytest.mark.parametrize("half", [{"tls_cert": "x"}, {"tls_key": "x"}, {"tls_client_ca": "x"}])
def test_half_of_a_certificate_is_an_error(half: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="tls_key"):
        Settings(**half)  # type: ignore[arg-type]


async def test_commands_speak_tls(
    start_server: Start,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clients = write_clients(tmp_path)
    server = await start_server(clients=clients.path, **files.settings)

    async def command(*arguments: str, token: str = "", server: str = server.address) -> tuple[int, str]:
        monkeypatch.setenv("LORA_ROUTER_TOKEN", token)
        capsys.readouterr()
        code = await asyncio.to_thread(run, [*arguments, "--server", server])
        out, err = capsys.readouterr()
        return code, out + err

    monkeypatch.setenv("LORA_ROUTER_TLS_CA", str(files.ca))
    assert (await command("ask", "hi there", token=clients.infer))[0] == 0
    assert "medical" in (await command("adapters", "list", token=clients.observe))[1]
    code, text = await command("adapters", "load", "medical", token=clients.observe)
    assert (code, "needs the role admin" in text) == (1, True)
    assert "LORA_ROUTER_TOKEN" in (await command("route", "hi"))[1]
    trustme.CA().cert_pem.write_to_path(tmp_path / "foreign.pem")
    monkeypatch.setenv("LORA_ROUTER_TLS_CA", str(tmp_path / "foreign.pem"))
    assert "LORA_ROUTER_TLS_CA names who signs" in (await command("route", "hi"))[1]
    monkeypatch.delenv("LORA_ROUTER_TLS_CA")
    code, text = await command("route", "hi", token="x", server="elsewhere:1")
    assert (code, text.count("LORA_ROUTER_TLS_CA")) == (2, 1)


async def test_the_line_to_paste_works(start_server: Start, files: Files, tmp_path: Path) -> None:
    clients = write_clients(tmp_path, both=("infer", "observe"))
    server = await start_server(clients=clients.path, **files.settings)
    line = lines_to_paste(server.address, server.settings, "Hello")[1]
    line = line.replace("CA.pem", str(files.ca)).replace("TOKEN", clients.both)
    command = [str(Path(sys.executable).with_name("buf")), *shlex.split(line)[1:]]
    buf = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=PIPE, stderr=PIPE)
    out, err = await buf.communicate()
    assert buf.returncode == 0, err.decode()
    assert b"FINISH_REASON_STOP" in out


async def test_a_client_that_is_taken_out_is_refused_within_a_second(
    start_server: Start, files: Files, tmp_path: Path
) -> None:
    clients = write_clients(tmp_path)
    server = await start_server(clients=clients.path, **files.settings)
    secured: dict[str, Any] = {"tls_ca": files.ca, "token": clients.infer}
    async with AsyncClient(server.address, timeout=3, **secured) as client:
        assert await client.route("hi")
        clients.path.write_text("")
        await asyncio.sleep(0.9)
        with pytest.raises(ClientError) as refused:
            await client.route("hi")
    assert refused.value.reason == "TOKEN_INVALID"


def test_a_token_is_sent_nowhere_in_plain_text() -> None:
    for target in ("router.svc:50051", "127.evil.example:50051", "10.0.0.1:1"):
        with pytest.raises(ValueError, match="plain text"):
            Client(target, token="lrk_a_b")
    Client("127.0.0.1:1", token="lrk_a_b").close()
    with pytest.raises(ValueError, match="go together"):
        Client("127.0.0.1:1", client_cert="a.pem")


async def test_plain_text_to_a_tls_server_is_refused(start_server: Start, files: Files) -> None:
    server = await start_server(**files.settings)
    async with grpc.aio.insecure_channel(server.address) as channel:
        refused = await failure(inference_pb2_grpc.InferenceServiceStub(channel).Generate(ask(), timeout=3))
    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(StopIteration):
        details(refused)


LAST_YEAR = datetime.now(UTC) - timedelta(days=400)


async def test_an_expired_certificate_leaves_the_old_one(start_server: Start, files: Files) -> None:
    server = await start_server(**files.settings)
    good = server.tls.expires
    files.renew(not_before=LAST_YEAR, not_after=LAST_YEAR + timedelta(days=90))
    assert await code_of(server.address, tls_ca=files.ca) == "OK"
    assert "certificate has expired" in server.tls.problem
    assert server.tls.expires == good
    server.look()
    name = "lora_router_certificate_expires_timestamp_seconds"
    assert server.metrics.registry.get_sample_value(name) == good


async def test_one_that_expires_while_it_is_in_force_is_told(start_server: Start, files: Files) -> None:
    """Clients refuse the connection and say why; the pages of the server tell its operator."""
    soon = datetime.now(UTC) + timedelta(seconds=2)
    files.renew(not_before=LAST_YEAR, not_after=soon)
    server = await start_server(**files.settings)
    assert server.health.readyz()["degraded"] == []
    await until(lambda: server.tls.expired, 20)
    assert "expired" in server.health.readyz()["degraded"][0]
    await asyncio.sleep(0.1)  # OpenSSL looks at a clock of whole seconds, which turns some milliseconds later
    context = ssl.create_default_context(cafile=files.ca)
    host, _, port = server.address.rpartition(":")
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        await asyncio.open_connection(host, int(port), ssl=context)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_a_file_that_every_user_may_write_is_an_error_at_start(files: Files, name: str) -> None:
    getattr(files, name).chmod(0o666)
    with pytest.raises(ConfigError, match="every user of this machine may write it"):
        read_pems(files.cert, files.key, files.ca)


def test_an_expired_certificate_is_an_error_at_start(files: Files) -> None:
    files.renew(not_before=LAST_YEAR, not_after=LAST_YEAR + timedelta(days=90))
    with pytest.raises(ConfigError, match="certificate has expired"):
        Tls(files.cert, files.key, None)
