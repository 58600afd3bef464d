"""Whatever breaks, and wherever, the caller is told a fixed text and the request's id."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from router.server.app import ServerApp
from router.server.status import INTERNAL_TEXT
from tests.server.helpers import ask, details, failure

SECRET = "hunter2 at /srv/lora-router/secret.py, postgresql://user:pw@db/x"
Break = Callable[[ServerApp, Any, Callable[..., Any]], None]


def put(name: str, of: Callable[[ServerApp, Any], Any]) -> Break:
    """Put the fault in the place of a function."""
    return lambda app, fakes, fault: setattr(of(app, fakes), name, fault)


PLACES: dict[str, Break] = {
    "who calls": put("client", lambda app, _: app.access),
    "may they": put("check", lambda app, _: app.access),
    "gate": put("gate", lambda app, _: app.lifecycle),
    "admission": put("admitted", lambda app, _: app.admission),
    "body": put("one", lambda app, _: app.interceptors.bodies),
    "routing": put("route", lambda _, fakes: fakes.router),
    "registry": put("resolve", lambda _, fakes: fakes.registry),
    "lease": put("lease", lambda _, fakes: fakes.registry),
    "encoding": put("encode", lambda _, fakes: fakes.engine),
    "engine": put("submit", lambda _, fakes: fakes.engine),
}


@pytest.mark.parametrize("kind", [ValueError, OSError])
@pytest.mark.parametrize("place", PLACES)
async def test_a_fault_in_any_place_says_nothing(
    server: ServerApp, stubs: SimpleNamespace, fakes: SimpleNamespace, place: str, kind: type[Exception]
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise kind(SECRET)

    PLACES[place](server, fakes, fault)
    request = ask("a medical question", routing={"adapter": "adapters/medical"})
    error = await failure(stubs.inference.Generate(request, metadata=(("x-request-id", "mine"),)))
    assert (error.code().name, error.details()) == ("INTERNAL", INTERNAL_TEXT)
    outside = repr(error.trailing_metadata()) + repr(details(error)) + error.details()
    for word in ("hunter2", "/srv", "secret.py", "postgresql", kind.__name__, "Traceback"):
        assert word not in outside
    assert details(error)["RequestInfo"].request_id == "mine"
