"""Static files: hashed names, kept for ever, small."""

from __future__ import annotations

import gzip
import re
from types import SimpleNamespace

from router.extensions.console.pages import ENTRIES
from router.extensions.console.rendering import assets
from router.extensions.console.site import ROOT, Page

MOST_BYTES = 250_000  # of a page with all that it loads
PAGES = sorted({ROOT + entry.path for entry in ENTRIES if isinstance(entry, Page) and entry.nav})


async def test_a_page_with_all_its_files_is_small(opened: SimpleNamespace) -> None:
    sizes: dict[str, int] = {}
    for path in PAGES:
        page = (await opened.http.get(path)).text
        files = set(re.findall(r'(?:src|href)="(/console/static/[^"]+)"', page))
        assert len(files) >= 4
        for file in files - sizes.keys():
            answer = await opened.http.get(file, headers={"accept-encoding": "identity"})
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            sizes[file] = len(answer.content)
        assert len(page.encode()) + sum(sizes[file] for file in files) <= MOST_BYTES


async def test_files_are_packed_for_who_can_read_that(opened: SimpleNamespace) -> None:
    for name, asset in assets().items():
        assert gzip.decompress(asset.packed) == asset.body
        answer = await opened.http.get(f"/console/static/{asset.name}", headers={"accept-encoding": "gzip"})
        assert answer.content == asset.body, name
        assert answer.headers["content-encoding"] == "gzip"
    assert (await opened.http.get("/console/static/nothing.css")).status_code == 404


def test_foreign_files_have_their_licences() -> None:
    told = assets()["LICENSES.txt"].body.decode()
    for name in assets():
        if ".min." in name:
            assert name in told
