"""The server over HTTP: OpenAI's API, OFREP and the console, on the same layers and pipeline as gRPC
(extra `http`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from router.errors import ConfigError, install_extra

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from router.config import Settings
    from router.ports import AdapterRegistry, ServedExperiments
    from router.server.inference import InferenceService
    from router.server.insight import Insight
    from router.server.layers import Chain
    from router.server.tls import Tls
    from router.web.listener import Listener


async def listen(
    chain: Chain,
    inference: InferenceService,
    registry: AdapterRegistry,
    experiments: ServedExperiments | None,
    settings: Settings,
    tls: Tls | None,
    methods: Mapping[str, Any],
    insight: Insight | None = None,
) -> Listener:
    """Serve at `settings.http_listen`; `methods` are the handlers of gRPC by /SERVICE/METHOD. With `insight`
    there is a console.

    Raises ConfigError without the extra, or for a taken address.
    """
    try:
        from router.web.console import ENTRIES, Console, routes
        from router.web.endpoints import application
        from router.web.listener import Listener
    except ModuleNotFoundError as error:
        text = f"http_listen needs {error.name}, which is not installed: {install_extra('http')}"
        raise ConfigError(text) from None
    listener = Listener(settings.http_listen, tls)
    listener.bind()
    more: Sequence[BaseRoute] = ()
    if insight is not None:
        console = Console(chain, methods, settings, insight, listener.address, ENTRIES)
        listener.beside, more = (console.history.follow, console.events.follow), routes(console)
    served = (chain, inference, registry, experiments, settings, methods)
    await listener.start(application(*served, more))
    return listener
