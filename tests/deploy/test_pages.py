"""The documentation as a site: what links become, and (long) the site itself, which asks nobody else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from deploy import pages

ROOT = Path(__file__).parents[2]
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]


def listed(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from listed(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_list_once() -> None:
    there = {p.name for p in (ROOT / "docs").glob("*.md")} | set(pages.NAMED.values())
    assert sorted(listed(NAV)) == sorted(there), "mkdocs.yml, nav"


@pytest.mark.parametrize(
    ("source", "text", "told"),
    [
        ("README.md", "[x](docs/cli.md#settings)", "[x](cli.md#settings)"),
        ("README.md", "[x](CHANGELOG.md)", "[x](changelog.md)"),
        ("README.md", "[x](examples)", "[x](examples.md)"),
        ("README.md", "[x](adapters/qa/REPORT.md)", "[x](files/adapters/qa/REPORT.md)"),
        ("adapters/qa/REPORT.md", "![c](own.png)", "![c](own.png)"),
        ("docs/client.md", "[x](../README.md#status)", "[x](index.md#status)"),
        ("docs/client.md", "[x](#python) [y](grpc.md)", "[x](#python) [y](grpc.md)"),
        ("docs/security.md", "[x](../examples/go/client.go)", "[x](files/examples/go/client.go.md)"),
        ("examples/README.md", "[x](../docs/client.md)", "[x](client.md)"),
        ("docs/client.md", "[x](/cli.md)", "[x](/cli.md)"),
        ("docs/client.md", "[x](https://example.com/a.md)", "[x](https://example.com/a.md)"),
        ("README.md", "```\n[x](docs/cli.md)\n```\n", "```\n[x](docs/cli.md)\n```\n"),
    ],
)
def test_links_lead_where_their_targets_went(source: str, text: str, told: str) -> None:
    assert pages.rewritten(text, source) == told


def test_anchors_are_those_of_repositories() -> None:
    text = "# `a-b` of C\n\n## 1. Say, what?\n\n```sh\n# none\n```\n\n## [A](b.md) link\n\n## 1. Say, what?"
    assert pages.anchors(text) == {"a-b-of-c", "1-say-what", "a-link", "1-say-what-1"}


def test_a_file_that_is_no_page_is_shown() -> None:
    assert pages.shown("examples/buf_curl.sh").startswith("# `examples/buf_curl.sh`\n\n~~~~sh\n#!/bin/sh\n")
    assert "- [scale](results/scale.md)\n" in pages.shown("benchmarks/results")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The site and its tools, made by the target."""
    folder = tmp_path_factory.mktemp("docs")
    tools, site = folder / "tools", folder / "site"
    command = ["make", "docs", f"DOCS={tools}", f"SITE={site}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return tools, site


class Loaded(HTMLParser):
    """What a page loads by itself; links that a reader follows are none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        here = dict(attrs)
        if tag != "a":
            self.urls += [url for name in ("src", "href", "srcset", "data") if (url := here.get(name))]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_names_no_other_origin(made: tuple[Path, Path]) -> None:
    _, site = made
    found = list(site.rglob("*.html"))
    assert len(found) > 40
    for page in found:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.urls
        assert [url for url in loaded.urls if re.match(r"(\w+:)?//", url)] == [], page
    styles = "".join(sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css"))
    assert re.findall(r"""(?:url\(|@import)\s*["']?(?:\w+:)?//[^)]*""", styles) == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_llms_txt_lists_pages_that_are_there(made: tuple[Path, Path]) -> None:
    _, site = made
    text = (site / "llms.txt").read_text(encoding="utf-8")
    named = [path for path, _ in pages.links(text)]
    assert sorted(named) == sorted(listed(NAV))
    assert [name for name in named if not (site / name).is_file()] == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "wrong", ["[x](grpc.md#no-such-anchor)", "[x](no-such-page.md)", "[x](/absolute.md)", "![x](no.png)"]
)
def test_it_is_not_made_with_a_wrong_link(made: tuple[Path, Path], tmp_path: Path, wrong: str) -> None:
    tools, _ = made
    for entry in ROOT.iterdir():
        if entry.name in ("docs", "deploy"):
            shutil.copytree(entry, tmp_path / entry.name)
        elif entry.name == "mkdocs.yml":  # what lies beside it counts, and of a link that is where it leads
            shutil.copy(entry, tmp_path)
        elif not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    with (tmp_path / "docs/gpu.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{wrong}\n")
    command = [tools / "bin/mkdocs", "build", "--site-dir", tmp_path / "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "gpu.md" in done.stderr


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_browser_asks_nobody_else(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, site = made
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    log = tmp_path / "net.json"
    address = f"http://127.0.0.1:{server.server_address[1]}"
    said = {"user-data-dir": f"{tmp_path}/profile", "log-net-log": str(log), "virtual-time-budget": "5000"}
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *(f"--{name}={value}" for name, value in said.items()),
    ]
    command = [chromium, *flags, "--dump-dom", f"{address}/grpc/?q=deadline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    server.shutdown()
    server.server_close()
    assert "Deadlines and cancelling" in done.stdout
    # What no page began is the browser's own.
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = {
        event["url"] for event in events if event.get("initiator") == address
    }  # the rest is the browser's own
    assert f"{address}/search/search_index.json" in asked
    assert {url for url in asked if not url.startswith(address)} == set()
