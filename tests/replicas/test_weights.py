from __future__ import annotations

import asyncio

from router.replicas.messages import load
from router.replicas.weights import LoadedAdapter
from tests.engine.test_contract import fake_adapter
from tests.replicas.conftest import Make


async def test_two_loads_at_the_same_moment_do_not_share_the_last_room(fleet: Make) -> None:
    made = await fleet(1, host_bytes=24)  # three adapters
    adapters = [fake_adapter(f"a{i}") for i in range(4)]
    await asyncio.gather(*(made.engine.load(adapter) for adapter in adapters[:2]))
    late = [LoadedAdapter(one.digest, one.name, load(one), (), (), 8) for one in adapters[2:]]
    brought = (made.engine._weights.bring(kept) for kept in late)
    found = await asyncio.gather(*brought, return_exceptions=True)
    assert sorted(map(str, found)) == ["0", "no replica has memory left for 'a3' (host_memory_mb)"]
    assert made.made["0"].status().host_bytes == 24
