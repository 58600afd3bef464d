"""OpenAI's API over HTTP: completions, responses, embeddings, models and feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterHttp
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.server.app import ServerApp


@hookimpl
def register_http(register: RegisterHttp, server: ServerApp) -> None:
    """All of /v1."""
    from router.extensions.openai import embeddings, responses_routes
    from router.extensions.openai.routes import ROWS, routes

    register(routes(server.inference, server.registry, server.methods), ROWS)
    register(responses_routes.routes(server.inference), responses_routes.ROWS)
    register(embeddings.routes(server.embedding), embeddings.ROWS)
