"""The examples in Go, Java and Node against a server with TLS: by certificate, by token, by an issuer's."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.extensions.oidc.issuing import Issuing
from tests.security.helpers import write_clients
from tests.security.test_tls import Files
from tests.server.helpers import ROOT, Start
from tests.server.test_go_client import built

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(600)]
EXAMPLES = ROOT / "examples"
QUESTION = "a medical question"
INVALID = "the token or certificate is not valid here"
JARS = "/usr/share/java/*"
JAVA = "default-jdk-headless libgrpc-java libnetty-tcnative-java protobuf-compiler-grpc-java-plugin"


@pytest.fixture(
    scope="module", params=["node", *(pytest.param(n, marks=pytest.mark.long) for n in ("go", "java"))]
)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that takes flags, an address and a text."""
    made = {"node": node, "go": go, "java": java}[request.param]
    return made(tmp_path_factory.mktemp(request.param))


def node(folder: Path) -> list[str]:
    """The example in Node, installed."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm")
    example = folder / "examples" / "node"
    shutil.copytree(EXAMPLES / "node", example)
    (folder / "proto").symlink_to(ROOT / "proto")
    install = [npm, "install", "--prefer-offline", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=example, check=True)
    return ["node", str(example / "client.js")]


def go(folder: Path) -> list[str]:
    """The example in Go, compiled."""
    return [built((EXAMPLES / "go" / "client.go").read_text(), folder)]


def java(folder: Path) -> list[str]:
    """The example in Java, compiled as its first lines say; Debian's Netty speaks TLS by a library only."""
    library = next(Path("/usr/lib").glob("*/jni/libnetty-tcnative.so"), None)
    if not all(map(shutil.which, ("javac", "protoc", "grpc_java_plugin"))) or library is None:
        pytest.skip(f"no Java with gRPC: apt-get install {JAVA}")
    shutil.copy(library, folder / "libnetty_tcnative.so")  # the name that Netty looks for
    plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')}"
    made = (f"--java_out={folder}", f"--grpc-java_out={folder}")
    protoc = ["protoc", "-I", str(ROOT / "proto"), plugin, *made, "router/v1/inference.proto"]
    subprocess.run(protoc, check=True)
    sources = [str(EXAMPLES / "java" / "Client.java"), *map(str, folder.rglob("*.java"))]
    subprocess.run(["javac", "-cp", JARS, "-d", str(folder), *sources], check=True)
    return ["java", f"-Djava.library.path={folder}", "-cp", f"{folder}:{JARS}", "Client"]


async def ended(*command: str) -> tuple[int | None, str, str]:
    """Exit code, what it printed, and its errors."""
    child = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    out, err = await child.communicate()
    return child.returncode, out.decode(), err.decode()


def pkcs8(key: Path) -> None:
    """Write a key as Java wants it; the others read it, too."""
    read = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(read.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def answered(end: tuple[int | None, str, str]) -> bool:
    """Whether both calls got the adapter's answer."""
    code, out, err = end
    assert code == 0, err
    unary, streamed, finished = out.splitlines()
    assert unary.startswith("[adapters/medical/versions/1.0.0] ")
    return (streamed, finished) == (unary, "FINISH_REASON_STOP")


def refused(end: tuple[int | None, str, str]) -> str:
    """Why it got no answer."""
    code, out, err = end
    assert (code, out) == (1, "")
    return err


async def test_without_tls(client: list[str], start_server: Start) -> None:
    server = await start_server()
    assert answered(await ended(*client, server.address, QUESTION))
    assert "need --ca" in refused(await ended(*client, "--token", "lrk_a_b", server.address))


async def test_by_certificate(client: list[str], start_server: Start, tmp_path: Path) -> None:
    files, clients = Files(tmp_path), tmp_path / "clients.toml"
    clients.write_text(
        '[[client]]\nid = "billing"\ncert = "billing.svc"\nroles = ["infer"]\nadapters = ["*"]\n'
    )
    server = await start_server(clients=clients, tls_client_ca=files.ca, **files.settings)

    async def asked(name: str, authority: trustme.CA | None = None) -> tuple[int | None, str, str]:
        own = files.client(name, authority)
        pkcs8(Path(own["client_key"]))
        shown = ("--cert", str(own["client_cert"]), "--key", str(own["client_key"]))
        return await ended(*client, "--ca", str(files.ca), *shown, server.address, QUESTION)

    assert answered(await asked("billing.svc"))
    assert INVALID in refused(await asked("other.svc"))
    assert INVALID not in refused(await asked("billing.svc", trustme.CA()))
    assert INVALID not in refused(await ended(*client, "--ca", str(files.ca), server.address))


async def test_by_token_and_by_a_token_of_an_issuer(
    client: list[str], start_server: Start, tmp_path: Path
) -> None:
    files, issuing, keys = Files(tmp_path), Issuing(), tmp_path / "jwks.json"
    keys.write_bytes(issuing.document())
    clients = write_clients(tmp_path)
    clients.path.write_text(clients.path.read_text() + issuing.table(jwks=str(keys)) + issuing.client())
    server = await start_server(clients=clients.path, **files.settings)

    async def asked(token: str, ca: Path = files.ca) -> tuple[int | None, str, str]:
        return await ended(*client, "--ca", str(ca), "--token", token, server.address, QUESTION)

    for token in (clients.infer, issuing.token()):
        assert answered(await asked(token))
    for token in (clients.infer[:-1], issuing.token(sub="other")):
        assert INVALID in refused(await asked(token))
    trustme.CA().cert_pem.write_to_path(tmp_path / "foreign.pem")
    assert INVALID not in refused(await asked(clients.infer, tmp_path / "foreign.pem"))
