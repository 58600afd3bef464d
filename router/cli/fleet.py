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
    from router.replicas.link import Link, Security
    from router.replicas.membership import Membership

OF_ENGINES = {  # settings that a replica goes by
    "model", "dtype", "quantize", "device", "native", "native_dir", "threads",
    "max_running", "max_queue", "max_step_tokens", "max_context", "cache_tokens", "slots",
    "max_rank", "host_memory_mb", "stall_seconds", "drain_seconds", "log_level",
}  # fmt: skip


def replica_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a replica's engine needs. Other settings of the server, such as secrets, stay here.

    `tables` has that of the plugin called as the engine.
    """
    own = settings.model_dump(include=OF_ENGINES)
    shared = not settings.ray and settings.engine == "torch"  # they share this machine's cores
    if shared and not settings.threads:
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


def membership_and_links(settings: Settings) -> tuple[Membership, Callable[[str], Link]]:
    """Who decides which replicas there are, and the way to each. Raises ConfigError."""
    from router.replicas.children import ChildLink, devices
    from router.replicas.membership import FixedMembership, FoundMembership

    if settings.replica_addresses:
        found = FoundMembership(settings.replica_addresses, security_of(settings), settings.replica_tls_name)
        return found, found.link
    fixed = FixedMembership(tuple(map(str, range(settings.replicas))))
    own = replica_settings(settings)
    if settings.ray:
        from router.replicas.ray import RayCluster, require_ray

        require_ray()
        cluster = RayCluster(
            settings.ray,
            settings.engine,
            own,
            fleet=settings.fleet,
            cpus=settings.threads or 1,
            gpus=0 if settings.device == "cpu" else None,
            security=security_of(settings),
            tls_name=settings.replica_tls_name,
        )
        return fixed, cluster.link
    gpus = devices() if settings.device != "cpu" else ()

    def child(name: str) -> Link:
        device = {"CUDA_VISIBLE_DEVICES": gpus[int(name) % len(gpus)]} if gpus else {}
        return ChildLink(name, settings.engine, own, environment=device)

    return fixed, child


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
