"""Dashboard and alert rules: what they ask of is on the server's page, and Prometheus' own tool agrees."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.core import Metric

from router.extensions.experiments.runtime import LiveExperiments
from router.extensions.experiments.service import ExperimentMetrics
from router.extensions.sharing.sharing import EdgesCollector
from router.server.metrics import ServerMetrics
from tests.addresses import free_address
from tests.extensions.experiments.memory_store import MemoryStore
from tests.server.helpers import Connect, Start, ask

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES, RULE_TESTS = DEPLOY / "prometheus/alerts.yml", DEPLOY / "prometheus/alerts.test.yml"
BOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text(encoding="utf-8"))
OUTSIDE = {"up"}  # metrics that Prometheus itself makes
NAME = re.compile(r"\b(?:lora_router|grpc_server|http_server|process)_[a-z_]+")
BY = re.compile(r"(?:by|ignoring|on) \(([a-z_, ]*)\)|[{,]\s*([a-z_]+)\s*(?:=~|!~|!=|=)")
PREFIXES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",), "gauge": ("",)}
SCRAPER = {"instance", "job"}


def metrics() -> ServerMetrics:
    """All that a server may have on its page."""
    made = ServerMetrics()
    made.registry.register(ExperimentMetrics(LiveExperiments(MemoryStore())))
    made.registry.register(EdgesCollector(SimpleNamespace(problem="", edges=1)))
    return made


def families() -> Iterator[Metric]:
    yield from metrics().registry.collect()


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Every query, by where it stands."""
    shown = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in BOARD["panels"]
        for target in panel.get("targets", ())
    }
    return shown | {rule["alert"]: rule["expr"] for rule in alerts()}


def test_all_that_is_asked_of_is_on_the_page() -> None:
    there = {f"{family.name}{end}" for family in families() for end in PREFIXES[family.type]}
    asked = {name: where for where, text in expressions().items() for name in NAME.findall(text)}
    assert len(asked) > 40
    assert {name: where for name, where in asked.items() if name not in there} == {}


def test_all_labels_are_labels_of_the_metrics() -> None:
    told = (DEPLOY.parent / "docs/reference.md").read_text(encoding="utf-8")
    rows = {name: line for line in told.splitlines() for name in NAME.findall(line) if line.startswith("| `")}
    for where, text in expressions().items():
        names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in NAME.findall(text)}
        lines = " ".join(rows[name] for name in names)
        used = {label.strip() for by, one in BY.findall(text) for label in f"{by},{one}".split(",")}
        assert {one for one in used - SCRAPER - {"", "le"} if f"`{one}`" not in lines} == set(), where


def test_a_panel_has_a_place_of_its_own_and_the_datasource_of_the_board() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) == 23
    assert {p["datasource"]["uid"] for p in panels if p["type"] != "row"} == {"${datasource}"}


def test_every_alert_is_tried_and_told() -> None:
    names = [rule["alert"] for rule in alerts()]
    tried = yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"]
    fired = {c["alertname"] for t in tried for c in t["alert_rule_test"] if c["exp_alerts"]}
    assert fired == set(names)
    assert all(rule["annotations"]["description"] for rule in alerts())


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "page"),
    [
        (("check", "rules", str(RULES)), b""),
        (("test", "rules", str(RULE_TESTS)), b""),
        (("check", "metrics"), generate_latest),
    ],
    ids=["rules", "tests of rules", "metrics"],
)
def test_promtool_agrees(command: tuple[str, ...], page: Any) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not here: apt-get install --no-install-recommends prometheus")
    text = page(metrics().registry) if callable(page) else page
    done = subprocess.run([tool, *command], input=text, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def asked(address: str, path: str, **query: str) -> Any:
    """What Prometheus answers."""
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)["data"]


@pytest.mark.long
async def test_a_prometheus_scrapes_it_and_answers_every_panel(
    start_server: Start, connect: Connect, fakes: SimpleNamespace, tmp_path: Path
) -> None:
    tool, address = shutil.which("prometheus"), free_address()
    if tool is None:
        pytest.skip("prometheus is not here: apt-get install --no-install-recommends prometheus")
    server = await start_server(**vars(fakes), metrics_listen="127.0.0.1:0")
    await connect(server).inference.Generate(ask("medical words"))
    scrape = {"job_name": "lora-router", "static_configs": [{"targets": [server.metrics_address]}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [scrape],
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    flags = (f"--config.file={tmp_path}/config.yml", f"--storage.tsdb.path={tmp_path}/data")
    listen = f"--web.listen-address={address}"
    child = await asyncio.create_subprocess_exec(tool, *flags, listen, stderr=asyncio.subprocess.DEVNULL)
    try:
        found = await answers(address, 'lora_router_requests_total{adapter="medical"}')
        assert [sample["metric"]["code"] for sample in found] == ["OK"]
        for where, text in expressions().items():
            query = text.replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert (await asyncio.to_thread(asked, address, "query", query=query))["resultType"], where
        groups = (await asyncio.to_thread(asked, address, "rules"))["groups"]
        rules = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert rules == {rule["alert"]: "ok" for rule in alerts()}
    finally:
        child.terminate()
        await child.wait()


async def answers(address: str, query: str) -> Any:
    """Once there are any."""
    for _ in range(300):
        with suppress(OSError):
            if found := (await asyncio.to_thread(asked, address, "query", query=query))["result"]:
                await asyncio.sleep(2.0)  # rules are evaluated, too
                return found
        await asyncio.sleep(0.2)
    raise AssertionError("Prometheus has nothing of it")
