"""Names that endpoint pickers read, by the picker's own rules (GIE, proposal 003)."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from types import SimpleNamespace

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from router.engine.base import EngineStatus
from router.extensions.vllm_names import VllmNames
from router.types import AdapterRef
from tests.fakes import adapter
from tests.server.helpers import Connect, Start, ask


class Picker:
    """What a picker reads off a page, and how it scores a server for a named adapter."""

    def __init__(self, families: dict[str, Metric]) -> None:
        self.waiting = families["vllm:num_requests_waiting"].samples[0].value
        self.running = families["vllm:num_requests_running"].samples[0].value
        self.used = families["vllm:kv_cache_usage_perc"].samples[0].value
        cache = families["vllm:cache_config_info"].samples[0].labels
        self.tokens = int(cache["block_size"]) * int(cache["num_gpu_blocks"])
        newest = max(families["vllm:lora_requests_info"].samples, key=lambda sample: sample.value)
        self.time = newest.value
        self.most = int(newest.labels["max_lora"])
        self.active = set(filter(None, newest.labels["running_lora_adapters"].split(",")))
        self.coming = set(filter(None, newest.labels["waiting_lora_adapters"].split(",")))

    def score(self, model: str) -> float:
        if model in self.active:
            return 1.0
        if len(self.active) + len(self.coming) < self.most:
            return 0.8
        return 0.6 if model in self.coming else 0.0


def seen(names: VllmNames) -> Picker:
    return Picker({family.name: family for family in names.collect()})


def test_a_picker_reads_all_five() -> None:
    names = VllmNames()
    status = EngineStatus(
        running=3, waiting=2, cache_blocks=100, cache_blocks_free=25, block_size=16, slots=4
    )
    medical, old = adapter("medical", default=True), adapter("medical", "0.9.0")
    names.look(status, [medical, old], [AdapterRef("legal", "2.0.0")])
    read = seen(names)
    assert (read.running, read.waiting, read.used, read.tokens) == (3, 2, 0.75, 1600)
    assert (read.active, read.coming, read.most) == ({"medical", "medical@0.9.0"}, {"legal@2.0.0"}, 4)
    assert abs(read.time - time.time()) < 60
    assert [read.score(model) for model in ("medical", "code")] == [1.0, 0.8]


def test_one_that_is_full_says_so() -> None:
    names = VllmNames()
    held = [adapter(f"a{i}", default=True) for i in range(5)]
    names.look(EngineStatus(slots=4), held, [AdapterRef("legal", "2.0.0")])
    assert [seen(names).score(model) for model in ("a4", "legal@2.0.0", "code")] == [1.0, 0.6, 0.0]
    names.look(EngineStatus(slots=4), [], [])
    assert seen(names).score("code") == 0.8


async def test_on_the_page_where_it_is_asked_for(
    start_server: Start, connect: Connect, fakes: SimpleNamespace
) -> None:
    server = await start_server(**vars(fakes), metrics_listen="127.0.0.1:0", **{"vllm_names.metrics": "vllm"})
    await connect(server).inference.Generate(ask("medical words"))
    url = f"http://{server.metrics_address}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    read = Picker({family.name: family for family in text_string_to_metric_families(text)})
    assert "medical" in read.active
    assert (read.running, read.waiting) == (0, 0)
    other = await start_server(**vars(fakes), metrics_listen="127.0.0.1:0")
    url = f"http://{other.metrics_address}/metrics"
    assert b"vllm" not in await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())
