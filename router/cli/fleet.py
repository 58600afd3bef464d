"""A server over replicas, from its settings: what each is told, what all are together, the edge's part."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from router.config import Settings
from router.engine.base import Prompt
from router.errors import ConfigError
from router.models import resolve_model

if TYPE_CHECKING:
    from router.fleet.crew import Crew
    from router.fleet.link import Link
    from router.fleet.ray_link import RayCluster

STORE_REST = 256 << 20  # bytes of Ray's object store beside adapters' weights
OF_ENGINES = {  # settings that an engine goes by
    "model", "dtype", "quantize", "device", "native", "native_dir", "threads", "max_running", "max_queue",
    "max_step_tokens", "max_context", "cache_tokens", "prefix_cache", "slots", "max_rank", "host_memory_mb",
}  # fmt: skip


def replica_settings(settings: Settings) -> dict[str, Any]:
    """What a replica's engine goes by, and nothing of what else the server is told, such as secrets."""
    own = settings.model_dump(include=OF_ENGINES)
    if not settings.ray and not settings.threads:  # they share this machine's cores
        own["threads"] = max(1, len(os.sched_getaffinity(0)) // settings.replica_bounds[1])
    return own


def crew_and_links(settings: Settings, cluster: RayCluster) -> tuple[Crew, Callable[[str], Link]]:
    """Who decides which replicas there are, and the way to each: this edge's own, or those of a fleet."""
    if settings.fleet:
        from router.fleet.ray_crew import RayCrew, shared_links

        shared = RayCrew(cluster, settings.fleet, replica_settings(settings), settings.replica_bounds)
        return shared, shared_links(shared, cluster, settings.stall_seconds)
    from router.fleet.link import Links
    from router.fleet.local_crew import LocalCrew

    links = Links(cluster.link)
    return LocalCrew(*settings.replica_bounds, links.end), links


class EdgeEncoder:
    """A base's tokenizer without its weights."""

    def __init__(self, model: str) -> None:
        from transformers import AutoTokenizer

        from router.engine.text.prompt import PromptEncoder

        source: Any = resolve_model(model)
        try:
            self._encoder = PromptEncoder(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        except (OSError, ValueError) as error:
            raise ConfigError(f"the tokenizer of {model!r} cannot be loaded: {error}") from error

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
