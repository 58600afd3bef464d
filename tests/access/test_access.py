"""Who calls, whether they may, and whether they still may."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.access import Access, Credentials, bearer, may_be_of, new_response_id
from router.access.clients import Client, Role, hash_of, new_token
from router.errors import ConfigError, PermissionDenied, TokenMissing, Unauthenticated, Unavailable
from tests.server.helpers import held

GENERATE = "/router.v1.InferenceService/Generate"
LOAD = "/router.v1.AdapterService/LoadAdapter"
HEALTH = "/grpc.health.v1.Health/Check"
ROLES = {GENERATE: Role.INFER, LOAD: Role.ADMIN, HEALTH: Role.OPEN}


def entry(name: str, token: str, *roles: str, more: str = "") -> str:
    return f'[[client]]\nid = "{name}"\ntoken_sha256 = ["{hash_of(token)}"]\nroles = {list(roles)}\n{more}\n'


def allowed(access: Access, credentials: Credentials, method: str) -> Client:
    client = access.client(credentials, ROLES[method])
    access.check(client, ROLES[method], method)
    return client


def sent(token: str) -> Credentials:
    return Credentials((f"Bearer {token}",))


def test_without_a_file_everybody_may_everything() -> None:
    access = Access()
    for method in (GENERATE, LOAD, HEALTH):
        assert allowed(access, Credentials(), method).id == ""


def test_roles(tmp_path: Path) -> None:
    path, token = tmp_path / "c.toml", new_token("a")
    path.write_text(entry("a", token, "infer"))
    access = Access(path)
    assert allowed(access, sent(token), GENERATE).id == "a"
    assert allowed(access, Credentials(), HEALTH).id == ""
    with pytest.raises(PermissionDenied, match="needs the role admin") as denied:
        allowed(access, sent(token), LOAD)
    assert denied.value.metadata == {"role": "admin"}
    with pytest.raises(TokenMissing):
        allowed(access, Credentials(), GENERATE)


def test_a_token_decides_where_there_is_one(tmp_path: Path) -> None:
    path, token = tmp_path / "c.toml", new_token("a")
    path.write_text(entry("a", token, "infer") + '[[client]]\nid = "b"\ncert = "b.svc"\nroles = ["infer"]\n')
    access = Access(path)
    assert allowed(access, Credentials(names=("dns:b.svc",)), GENERATE).id == "b"
    assert allowed(access, Credentials((f"bearer {token}",), names=("dns:b.svc",)), GENERATE).id == "a"
    for wrong in (Credentials(("Bearer x",), names=("dns:b.svc",)), Credentials(names=("dns:B.svc",))):
        with pytest.raises(Unauthenticated) as refused:
            allowed(access, wrong, GENERATE)
        assert refused.value.reason == "TOKEN_INVALID"


def test_an_expired_client_is_nobody(tmp_path: Path) -> None:
    path, token, now = tmp_path / "c.toml", new_token("a"), [0.0]
    path.write_text(entry("a", token, "infer", more="expires = 1970-01-01T00:01:00Z"))
    access = Access(path, now=lambda: now[0])
    now[0] = 59.9
    assert allowed(access, sent(token), GENERATE).id == "a"
    now[0] = 60.0
    with pytest.raises(Unauthenticated, match="expired"):
        allowed(access, sent(token), GENERATE)


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        (["Bearer x"], "x"),
        (["bearer x"], "x"),
        (["BEARER x"], "x"),
        ([], ""),
        (["x"], ""),
        (["Basic x"], ""),
        (["Bearerx"], ""),
        (["Bearer x", "Bearer x"], ""),
        (["Bearer ü"], ""),
        (["Bearer " + "x" * 8186], ""),
        (["Bearer " + "x" * 8185], "x" * 8185),
    ],
)
def test_headers(headers: list[str], token: str) -> None:
    assert bearer(headers) == token


@pytest.mark.parametrize("change", ["", "roles", "expired"])
async def test_a_call_ends_when_its_client_may_no_longer_make_it(tmp_path: Path, change: str) -> None:
    path, token, other = tmp_path / "c.toml", new_token("a"), new_token("b")
    path.write_text(entry("a", token, "infer") + entry("b", other, "infer"))
    access = Access(path)
    follow = asyncio.create_task(access.follow())

    async def call(credentials: Credentials) -> None:
        async with held(access, credentials, GENERATE, access.client(credentials, Role.INFER)):
            await asyncio.Event().wait()

    ended, goes_on = asyncio.create_task(call(sent(token))), asyncio.create_task(call(sent(other)))
    await asyncio.sleep(0.01)
    left = {
        "": "",
        "roles": entry("a", token, "observe"),
        "expired": entry("a", token, "infer", more="expires = 2001-01-01T00:00:00Z"),
    }[change]
    path.write_text(left + entry("b", other, "infer"))
    with pytest.raises(PermissionDenied if change == "roles" else Unauthenticated):
        await asyncio.wait_for(ended, 60)
    assert not goes_on.done()
    for task in (goes_on, follow):
        task.cancel()


@pytest.mark.parametrize(
    ("lasts", "change", "ends"),
    [
        (False, 'experiments = ["x"]', True),
        (False, 'tenant = "acme"', True),
        (False, "outcomes_per_day = 5", False),
        (True, "outcomes_per_day = 5", True),
        (True, "requests_per_minute = 5", False),
        (True, '[[tenant]]\nid = "a"\noutcomes_per_second = 5', True),
    ],
)
async def test_a_call_ends_when_what_it_was_granted_changes(
    tmp_path: Path, lasts: bool, change: str, ends: bool
) -> None:
    path, token = tmp_path / "c.toml", new_token("a")
    path.write_text(entry("a", token, "infer"))
    access = Access(path)
    client = allowed(access, sent(token), GENERATE)
    path.write_text(entry("a", token, "infer", more=change))

    async def run(seconds: float) -> None:
        async with held(access, sent(token), GENERATE, client, lasts):
            access.look()
            await asyncio.sleep(seconds)

    if not ends:
        await run(0)
        return
    with pytest.raises(Unavailable, match="know of or use was changed"):
        await run(60)


async def test_a_bad_file_ends_nothing_and_is_told(tmp_path: Path) -> None:
    path, token = tmp_path / "c.toml", new_token("a")
    path.write_text(entry("a", token, "infer"))
    access = Access(path)
    async with held(access, sent(token), GENERATE, allowed(access, sent(token), GENERATE)):
        path.write_text("[[client]]\nid = ")
        access.look()
        await asyncio.sleep(0)
    assert "not valid TOML" in access.problem
    assert allowed(access, sent(token), GENERATE).id == "a"


def test_at_start_a_bad_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Access(tmp_path / "none.toml")


# -- Ids of answers: whose an answer is shows in its id, and in nothing that a thief could change.


TENANTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


def test_ids_are_random_and_tagged_where_there_are_tenants() -> None:
    assert re.fullmatch("[0-9a-f]{32}", new_response_id())
    assert re.fullmatch("[0-9a-f]{40}", new_response_id("acme"))
    assert len({new_response_id("acme")[:32] for _ in range(1000)}) == 1000


@given(TENANTS, TENANTS)
def test_an_id_is_its_tenants_alone(mine: str, other: str) -> None:
    made = new_response_id(mine)
    assert may_be_of(made, mine)
    assert may_be_of(made, other) == (mine == other)
    assert may_be_of(made, "")  # a server whose clients do not authenticate


@pytest.mark.parametrize("old", ["0a" * 16, "0a1b2c", "x" * 40, "A" * 40, ""])
def test_what_has_no_tag_can_be_anybodys(old: str) -> None:
    assert may_be_of(old, "acme")
