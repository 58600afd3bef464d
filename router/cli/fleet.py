"""A server over replicas, from its settings: those of each replica, of all together, of the edge."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from router.config import Settings
from router.engine.base import Prompt
from router.models import resolve_model
from router.plugins.tables import canonical

if TYPE_CHECKING:
    from router.replicas.link import Security
    from router.replicas.membership import Membership

OF_ENGINES = {  # settings that a replica goes by
    "model", "dtype", "quantize", "device", "native", "native_dir", "threads",
    "max_running", "max_queue", "max_step_tokens", "max_context", "cache_tokens", "slots",
    "max_rank", "host_memory_mb", "stall_seconds", "drain_seconds", "log_level",
}  # fmt: skip


def replica_settings(settings: Settings, alone: bool = False) -> dict[str, Any]:
    """The settings that a replica's engine needs. Other settings of the server, such as secrets, stay here.

    `alone` on its machine it has all cores. `tables` has that of the plugin called as the engine.
    """
    own = settings.model_dump(include=OF_ENGINES)
    if settings.engine == "torch" and not settings.threads and not alone:  # they share this machine's cores
        own["threads"] = max(1, len(os.sched_getaffinity(0)) // settings.replica_bounds[1])
    name = canonical(settings.engine)
    if name in settings.tables:
        own["tables"] = {name: settings.tables[name].to_json()}
    return own


def security_of(settings: Settings) -> Security:
    """How this edge and replicas that others start know each other."""
    from router.replicas.link import Security

    secret = settings.replica_secret.get_secret_value() if settings.replica_secret else ""
    files = settings.replica_tls_ca, settings.replica_tls_cert, settings.replica_tls_key
    return Security(secret, *files)


def membership_of(settings: Settings) -> Membership:
    """Which replicas there are, and the way to each. Raises ConfigError."""
    from router.replicas.children import ChildLink, devices
    from router.replicas.membership import FixedMembership, FoundMembership

    if settings.replica_addresses:
        security = security_of(settings)
        return FoundMembership(settings.replica_addresses, security, settings.replica_tls_name)
    own = replica_settings(settings)
    gpus = devices() if settings.device != "cpu" else ()
    links = []
    for number in range(settings.replicas):
        device = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        links.append(ChildLink(str(number), settings.engine, own, environment=device))
    return FixedMembership(links)


class EdgeEncoder:
    """A base's tokenizer without its weights."""

    def __init__(self, model: str) -> None:
        from router.engine.loader import load_tokenizer
        from router.engine.prompt import PromptEncoder

        self._encoder = PromptEncoder(load_tokenizer(resolve_model(model), model))

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """Token ids; `shared` is cheap afterwards."""
        tokens = self._encoder.encode(prompt, most, check)
        if prompt.raw is None:
            self._encoder.beginning(prompt.template)
        return tokens

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """How many of its `tokens` every prompt under its template begins with."""
        return self._encoder.shared(prompt, tokens)


def of_all_replicas(settings: Settings) -> Settings:
    """As server and registry count requests and adapters: what all replicas together have place for.

    Requests by the most there may be; while it runs the server counts those that are up. Adapters by the
    least, so that they stay loaded when replicas are taken away.
    """
    least, most = (max(1, bound) for bound in settings.replica_bounds)
    times = {"max_running": most, "max_queue": most, "host_memory_mb": least}
    return settings.model_copy(update={name: n * getattr(settings, name) for name, n in times.items()})
