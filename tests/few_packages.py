"""Serves the folder `adapters` of the current one on the fake engine; prints as JSON what that server does.

    python few_packages.py [PACKAGE ...]

The packages named cannot be imported. It needs nothing of this folder, so any environment can run it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.modules.update(dict.fromkeys(sys.argv[1:]))  # an import of a module that is None fails

import grpc  # noqa: E402

from router.cli.compose import Composition  # noqa: E402
from router.cli.settings import load_settings  # noqa: E402
from router.client import AsyncClient, ClientError  # noqa: E402
from router.engine.fake import FakeEngine  # noqa: E402
from router.extensions.experiments.client import AsyncExperiments  # noqa: E402

SITES = {"model.layers.0.self_attn.q_proj": (8, 8), "model.layers.0.mlp.up_proj": (16, 8)}
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SETTINGS = {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
MORE = {"lame_duck_seconds": 0.0, "gate": "off", "load_plugins": "bikes", "adapters_dir": "adapters"}


async def main(adapters: int) -> dict[str, Any]:
    engine = FakeEngine()
    engine._info = replace(engine._info, sites=SITES)
    composition, ready = Composition(load_settings({**SETTINGS, **MORE}), engine), asyncio.Event()
    task = asyncio.create_task(composition.run(lambda app: ready.set()))
    await asyncio.wait({task, asyncio.create_task(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    app = composition.app
    try:
        async with AsyncClient(app.address, timeout=30) as client:
            async with asyncio.timeout(30):
                while len(await client.adapters.list()) < adapters:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            return {
                "named": (await client.generate("one two", adapter="bikes")).decision.adapter.name,
                "routed": (await client.generate("rent a bike")).text,
                "constrained": await refused(client, choices=["yes", "no"]),
                "adapters": {a.ref.name: [a.state.name, a.error] for a in await client.adapters.list()},
                "experiments": [e.name for e in await AsyncExperiments(client).list()],
                "models": await asyncio.to_thread(status, f"http://{app.http_address}/v1/models"),
                "console": await asyncio.to_thread(status, f"http://{app.http_address}/console"),
                "metrics": await asyncio.to_thread(status, f"http://{app.metrics_address}/metrics"),
                "reflection": await reflected(app.address),
                "degraded": list(app.health.degraded),
            }
    finally:
        app.request_stop()
        await task


async def refused(client: AsyncClient, **options: Any) -> str:
    try:
        return (await client.generate("one two", **options)).text
    except ClientError as error:
        return f"{error.code}: {error.message}"


async def reflected(address: str) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(REFLECTION)(iter([b":\0"]))  # list_services
        try:
            return "served" if [answer async for answer in call] else "silent"
        except grpc.aio.AioRpcError as error:
            return error.code().name


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(len(list(Path("adapters").iterdir()))))))
