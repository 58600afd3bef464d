"""Tasks that nobody waits for until the end."""

from __future__ import annotations

import asyncio

from router.experiments.live.tasks import leave


async def test_all_are_gone_afterwards() -> None:
    tasks = {asyncio.create_task(asyncio.sleep(60)) for _ in range(3)}
    await leave(tasks)
    assert all(task.cancelled() for task in tasks)
    await leave(())
