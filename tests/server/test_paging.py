"""Row 25: pages."""

from __future__ import annotations

import base64
from types import SimpleNamespace

import pytest

from router.errors import InvalidRequest
from router.server.adapters import order, page
from router.types import AdapterRef
from router.v1 import adapters_pb2 as pb
from tests.fakes import FakeRegistry, adapter
from tests.server.helpers import details, failure

INFOS = [adapter(f"a{i:02}") for i in range(25)]


@pytest.fixture
def fakes(fakes: SimpleNamespace) -> SimpleNamespace:
    fakes.registry = fakes.router.catalog = FakeRegistry(fakes.engine, INFOS)
    return fakes


async def test_25_by_10(stubs: SimpleNamespace) -> None:
    sizes, names, token = [], [], ""
    while not sizes or token:
        reply = await stubs.adapters.ListAdapters(pb.ListAdaptersRequest(page_size=10, page_token=token))
        sizes.append(len(reply.adapters))
        names += [a.name for a in reply.adapters]
        token = reply.next_page_token
    assert sizes == [10, 10, 5]
    assert names == [info.ref.resource for info in INFOS]


@pytest.mark.parametrize("size", [0, 25, 2**31 - 1])
async def test_all_at_once(stubs: SimpleNamespace, size: int) -> None:
    reply = await stubs.adapters.ListAdapters(pb.ListAdaptersRequest(page_size=size))
    assert (len(reply.adapters), reply.next_page_token) == (25, "")


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"page_token": "é"}, "page_token"),
        ({"page_token": base64.urlsafe_b64encode(b"[1, 2, 3]").decode()}, "page_token"),
        ({"page_token": "x" * 2000}, "page_token"),
    ],
)
async def test_bad_requests(stubs: SimpleNamespace, request_fields: dict[str, object], field: str) -> None:
    refused = await failure(stubs.adapters.ListAdapters(pb.ListAdaptersRequest(**request_fields)))
    assert [v.field for v in details(refused)["BadRequest"].field_violations] == [field]


def test_a_token_belongs_to_its_filters() -> None:
    _, token = page(INFOS, 10, "", ("medical", ""))
    with pytest.raises(InvalidRequest, match="page_token"):
        page(INFOS, 10, token, ("legal", ""))


def test_what_goes_between_pages_shifts_nothing() -> None:
    shown, token = page(INFOS, 10, "", ())
    left = [info for info in INFOS if info.ref != shown[-1].ref]
    assert page(left, 10, token, ())[0] == INFOS[10:20]


def test_size_is_capped() -> None:
    many = [adapter(f"a{i:04}") for i in range(600)]
    assert len(page(many, 0, "", ())[0]) == 50
    assert len(page(many, 9999, "", ())[0]) == 500


def test_versions_count_as_numbers() -> None:
    versions = ["1.10.0", "1.9.0", "1.9.0-rc1", "2"]
    ordered = sorted((AdapterRef("a", v) for v in versions), key=order)
    assert [ref.version for ref in ordered] == ["1.9.0", "1.9.0-rc1", "1.10.0", "2"]
