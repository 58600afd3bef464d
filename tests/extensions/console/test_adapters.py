"""The list, and one version's page: what is shown, to whom, and that texts stay texts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from router.ports import Measured
from router.types import AdapterRef, AdapterState, Override
from tests.extensions.console.conftest import Roled
from tests.fakes import adapter

ROOT = Path(__file__).parents[3]
MEDICAL = AdapterRef("medical", "1.0.0")
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} <b onmouseover="alert(3)">'


async def test_the_list_shows_states_scores_and_reasons(opened: SimpleNamespace) -> None:
    registry = opened.registry
    registry.measures[MEDICAL] = Measured("exact match", (0.772, 0.7, 0.8), (0.63, 0.5, 0.7))
    registry.put(replace(adapter("broken"), state=AdapterState.QUARANTINED, error="rank is 0"))
    registry.put(replace(registry.infos[MEDICAL], pinned=True, size_bytes=4_939_072))
    page = (await opened.http.get("/console/adapters")).text
    for text in ("medical", "legal", "quarantined", "rank is 0", "0.772", "+0.63", "pinned", "4.9 MB"):
        assert text in page
    assert 'href="/console/adapters/medical/1.0.0"' in page
    only = (await opened.http.get("/console/adapters?q=legal")).text
    assert "legal" in only
    assert "/console/adapters/medical" not in only


async def listed(opened: SimpleNamespace, query: str) -> list[str]:
    """Names in the list, in its order."""
    page = (await opened.http.get(f"/console/adapters/live{query}")).text
    return re.findall(r'<th scope="row"><a href="/console/adapters/([^/]+)/', page)


async def test_long_lists_have_pages(opened: SimpleNamespace) -> None:
    for number in range(120):
        opened.registry.put(adapter(f"many-{number:03}", default=True))
    first = (await opened.http.get("/console/adapters?q=many")).text
    assert "1 to 50 of 120" in first
    more = re.search(r'href="(/console/adapters\?[^"]+)">Next page', first)
    assert more
    third = (await opened.http.get(more[1].replace("&amp;", "&").replace("page=2", "page=3"))).text
    assert "101 to 120 of 120" in third
    assert "many-119" in third
    assert "Next page" not in third


async def test_a_list_is_searched_filtered_and_sorted(opened: SimpleNamespace) -> None:
    registry = opened.registry
    for name, size, used in (("tax", 3, 9.0), ("tariffs", 2, None), ("poems", 1, 5.0)):
        registry.put(adapter(name, size_bytes=size, last_used=used, default=True, task="chat"))
    registry.put(replace(registry.infos[AdapterRef("poems", "1.0.0")], description="Limericks, sonnets"))
    registry.put(adapter("tax", "2.0.0", size_bytes=9))
    registry.measures[MEDICAL] = Measured("exact match", (0.7, 0.7, 0.8), (0.6, 0.5, 0.7))
    assert await listed(opened, "?q=TA") == ["tariffs", "tax"]
    assert await listed(opened, "?q=sonnet+poem") == ["poems"]
    assert await listed(opened, "?q=ta+chat+tax") == ["tax"]
    assert await listed(opened, "?q=chat&sort=size") == ["tax", "tariffs", "poems"]
    assert await listed(opened, "?q=chat&sort=-size") == ["poems", "tariffs", "tax"]
    assert await listed(opened, "?q=chat&sort=used") == ["tax", "poems", "tariffs"]
    assert (await listed(opened, "?sort=score"))[0] == "medical"
    assert await listed(opened, "?state=loading") == []
    registry.put(replace(adapter("tax", "3.0.0"), state=AdapterState.QUARANTINED, error="rank is 0"))
    assert (await listed(opened, "?sort=size"))[:2] == ["tax", "tax"]  # quarantined first
    assert await listed(opened, "?state=quarantined") == ["tax"]
    page = (await opened.http.get("/console/adapters?q=tax&sort=-size")).text
    assert "2 others" in page
    assert 'aria-sort="ascending"' in page
    assert "No adapter matches" in (await opened.http.get("/console/adapters?q=nothing")).text


async def test_a_list_names_what_is_wrong_with_its_address(opened: SimpleNamespace) -> None:
    for query in ("page=nonsense", "page=0", "sort=colour", "state=happy", f"q={'x' * 300}"):
        answer = await opened.http.get(f"/console/adapters?{query}")
        assert answer.status_code == 400, query
        assert f"{query.partition('=')[0]}: must" in answer.text


async def test_a_version_says_what_differs_and_what_to_do_next(opened: SimpleNamespace) -> None:
    registry, newer = opened.registry, AdapterRef("medical", "1.1.0")
    registry.put(adapter("medical", "1.1.0", rank=16, description="ICD-10"))
    for ref, count in ((MEDICAL, 1), (newer, 2)):
        examples = json.dumps([f"example {i} {EVIL}" for i in range(count)])
        registry.documents[ref, "adapter.toml"] = f"[routing]\nexamples = {examples}".encode()
    page = (await opened.http.get("/console/adapters/medical/1.0.0")).text
    assert "rank 16; another description" in page
    assert "playground?model=medical%401.0.0" in page
    assert "playground?text=example+0+%22%3E%3Cscript" in page
    assert "new-experiment" not in page  # there are no experiments here
    assert ">Unload<" not in page


async def test_whatever_an_adapter_says_is_text(opened: SimpleNamespace) -> None:
    """Manifests, reports and probes are written by anyone who made the adapter."""
    registry, ref = opened.registry, AdapterRef("evil", "1.0.0")
    registry.put(
        replace(
            adapter(*("evil", "1.0.0"), description=EVIL, task=EVIL, base_model=EVIL),
            target_modules=(EVIL,),
            notes=(EVIL,),
            gate=EVIL,
            gate_advice=EVIL,
            override=Override("1.0.0", EVIL, 1.0, EVIL, EVIL),
        )
    )
    registry.put(adapter(EVIL, EVIL.replace("/", "|")))
    said = json.dumps(EVIL)
    registry.documents[ref, "adapter.toml"] = (
        f"[prompt]\nsystem = {said}\n[routing]\nexamples = [{said}]".encode()
    )
    registry.documents[ref, "REPORT.md"] = EVIL.encode()
    registry.documents[ref, "probes.jsonl"] = f'{{"prompt": {said}, "expect": {said}}}'.encode()
    for path in ("", "/live", "/evil/1.0.0", "/evil/1.0.0/default"):
        answer = await opened.http.get(f"/console/adapters{path}")
        assert answer.status_code == 200, answer.text
        assert "&lt;script&gt;" in answer.text
        for raw in ("<script>alert", "<img src=x", "<b onmouse", "> 49 <"):
            assert raw not in answer.text


async def test_a_version_shows_its_report_card_and_manifest(opened: SimpleNamespace) -> None:
    registry, folder = opened.registry, ROOT / "adapters" / "medical"
    registry.measures[MEDICAL] = Measured("exact match", (0.772, 0.722, 0.822), (0.63, 0.5, 0.7))
    for name in ("REPORT.md", "adapter.toml", "probes.jsonl"):
        registry.documents[MEDICAL, name] = (folder / name).read_bytes()
    page = (await opened.http.get("/console/adapters/medical/1.0.0")).text
    tiles = re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page.partition('class="tiles fit"')[2])
    assert tiles[:2] == [("Score", "0.772"), ("Over the base", "+0.630")]
    for text in ("# medical 1.0.0: report card", "Name the ICD-10-CM chapter", "choices", "4 probes"):
        assert text in page


async def test_a_manifest_that_is_damaged_is_left_out(opened: SimpleNamespace) -> None:
    for data in (b"\xff", b"[", b"prompt = 3", b"[routing]\nexamples = [1]"):
        opened.registry.documents[MEDICAL, "adapter.toml"] = data
        page = await opened.http.get("/console/adapters/medical/1.0.0")
        assert page.status_code == 200
        assert "It has no examples" in page.text


async def test_what_a_client_may_not_know_of_is_not_there(roled: Roled) -> None:
    site = await roled(adapters=["legal"])
    page = (await site.olga.get("/console/adapters")).text
    assert "legal" in page
    assert "medical" not in page
    for path in ("", "/default"):
        answer = await site.olga.get(f"/console/adapters/medical/1.0.0{path}")
        assert answer.status_code == 404
        assert "legal" not in answer.text


async def test_nobody_of_that_name(opened: SimpleNamespace) -> None:
    answer = await opened.http.get("/console/adapters/nobody/1.0.0")
    assert answer.status_code == 404
    assert "nobody" in answer.text
