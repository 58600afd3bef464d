"""A server with an HTTP address, OpenAI's client, and a client that sends what it is told."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import trustme

from router.server.app import ServerApp

StartWeb = Callable[..., Awaitable[ServerApp]]
Http = Callable[..., httpx2.AsyncClient]


async def with_certificates(
    start_web: StartWeb, folder: Path, role: str, adapter: str
) -> tuple[ServerApp, ssl.SSLContext, ssl.SSLContext]:
    """A server that asks for certificates, what its client "team" connects with, and what a stranger does."""
    authority = trustme.CA()
    paths = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key", "mine", "mykey")}
    authority.cert_pem.write_to_path(str(paths["ca"]))
    for name, cert, key in (("127.0.0.1", "cert", "key"), ("team.example", "mine", "mykey")):
        made = authority.issue_cert(name)
        paths[cert].write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        paths[key].write_bytes(made.private_key_pem.bytes())
    clients = folder / "clients.toml"
    clients.write_text(
        f'[[client]]\nid = "team"\ncert = "team.example"\nroles = ["{role}"]\nadapters = ["{adapter}"]\n'
    )
    server = await start_web(
        clients=clients, tls_cert=paths["cert"], tls_key=paths["key"], tls_client_ca=paths["ca"]
    )
    team, stranger = (ssl.create_default_context(cafile=str(paths["ca"])) for _ in range(2))
    team.load_cert_chain(paths["mine"], paths["mykey"])
    return server, team, stranger


def connect(server: ServerApp, token: str = "none", scheme: str = "http") -> openai.AsyncOpenAI:
    """OpenAI's client."""
    return openai.AsyncOpenAI(base_url=f"{scheme}://{server.http_address}/v1", api_key=token, max_retries=0)


def asking(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
