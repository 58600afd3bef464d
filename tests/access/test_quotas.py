"""Calls at once, calls and tokens a minute, outcomes a second and a day; of a client and of its tenant."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.clients import Client, Tenant, parse_clients
from router.access.quotas import Quotas, TokenBucket, UsageMeter
from router.errors import ConfigError, QuotaExceeded


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(quotas: Quotas, client: Client) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught, quotas.call(client):
        pytest.fail("let in")
    return caught.value


def metered(use: Callable[[UsageMeter], object], quotas: Quotas, client: Client) -> QuotaExceeded:
    with quotas.call(client) as meter:
        assert meter is not None
        with pytest.raises(QuotaExceeded) as caught:
            use(meter)
    return caught.value


def no_tokens(quotas: Quotas, client: Client, prompt: int, answer: int) -> QuotaExceeded:
    return metered(lambda meter: meter.reserve(prompt, answer), quotas, client)


def test_quotas_are_read() -> None:
    text = '[[client]]\nid = "a"\ncert = "x"\n'
    (found,) = parse_clients(text + "requests_per_minute = 6\ntokens_per_minute = 7\nmax_concurrent = 8").all
    assert (found.requests_per_minute, found.tokens_per_minute, found.max_concurrent) == (6, 7, 8)
    (found,) = parse_clients(text + "outcomes_per_second = 6\noutcomes_per_day = 7").all
    assert (found.outcomes_per_second, found.outcomes_per_day) == (6, 7)
    for odd in ("0", "-1", "1.5", "true", '"9"'):
        with pytest.raises(ConfigError, match="max_concurrent must be"):
            parse_clients(f"{text}max_concurrent = {odd}")


def test_without_quotas_nothing_is_counted() -> None:
    quotas = Quotas()
    for _ in range(1000):
        with quotas.call(Client("a", group=Tenant("a", share=2.0))) as meter:
            assert meter is None


def test_calls_at_once() -> None:
    quotas, client, other = Quotas(), Client("a", max_concurrent=2), Client("b", max_concurrent=1)
    with quotas.call(client), quotas.call(client):
        error = refused(quotas, client)
        assert (error.quota, error.retry_after, error.holder) == ("max_concurrent", 1.0, "client:a")
        with quotas.call(other):
            pass
    with pytest.raises(ValueError, match="inside"), quotas.call(client):
        raise ValueError("inside")
    with quotas.call(client), quotas.call(client):
        pass


def test_calls_a_minute_come_back_evenly() -> None:
    clock = Clock()
    quotas, client = Quotas(clock), Client("a", requests_per_minute=60)
    for _ in range(60):
        with quotas.call(client):
            pass
    error = refused(quotas, client)
    assert (error.quota, error.retry_after) == ("requests_per_minute", pytest.approx(1.0))
    clock.now += 1.0
    with quotas.call(client):
        pass
    refused(quotas, client)
    clock.now += 3600
    for _ in range(60):
        with quotas.call(client):
            pass
    refused(quotas, client)


def test_tokens_are_reserved_and_given_back() -> None:
    clock = Clock()
    quotas, client = Quotas(clock), Client("a", tokens_per_minute=600)
    with quotas.call(client) as meter:
        assert meter is not None
        meter.reserve(100, 400)
        error = no_tokens(quotas, client, 50, 100)
        assert (error.quota, error.retry_after) == ("tokens_per_minute", pytest.approx(5.0))
        meter.used += 20
    with quotas.call(client) as meter:
        assert meter is not None
        meter.reserve(100, 380)  # 600 - 120
        meter.reserve(100, 379)  # another try of the same request counts once
        meter.used += 500  # more than was reserved costs no more
    no_tokens(quotas, client, 1, 1)


def test_what_can_never_be_is_told_without_a_time() -> None:
    assert no_tokens(Quotas(), Client("a", tokens_per_minute=10), 5, 6).retry_after is None


def test_a_quota_that_is_changed_holds_at_once() -> None:
    bucket = TokenBucket(0)

    def take(size: float, most: float) -> float:
        if not (wait := bucket.wait(size, most, 0)):
            bucket.take(size)
        return wait

    assert take(10, 10) == 0
    assert take(5, 20) == 0  # ten more than before
    assert take(5, 5) == 0
    assert take(1, 5) == pytest.approx(12)
    bucket.give(100)
    assert take(6, 5) == float("inf")


# -- A tenant's quotas, beside its clients' own.

ACME = Tenant("acme", requests_per_minute=60, tokens_per_minute=600, max_concurrent=2)


def of_acme(name: str, tenant: Tenant = ACME, **quotas: int) -> Client:
    return Client(name, tenant=tenant.id, group=tenant, **quotas)  # type: ignore[arg-type]


def test_clients_of_a_tenant_share_its_quotas() -> None:
    clock = Clock()
    quotas, one, two = Quotas(clock), of_acme("one"), of_acme("two")
    with quotas.call(one), quotas.call(two):
        error = refused(quotas, one)
        assert (error.quota, error.holder) == ("tenant.max_concurrent", "tenant:acme")
        assert "the tenant acme" in error.message
        with quotas.call(Client("three", max_concurrent=1)):
            pass
    for client in (one, two) * 29:
        with quotas.call(client):
            pass
    assert refused(quotas, two).quota == "tenant.requests_per_minute"


def test_a_client_has_the_name_of_a_tenant_and_quotas_of_its_own() -> None:
    quotas = Quotas(Clock())
    named_so, other = of_acme("acme", max_concurrent=1), of_acme("other")
    with quotas.call(named_so):
        assert refused(quotas, named_so).quota == "max_concurrent"
        with quotas.call(other):
            assert refused(quotas, other).quota == "tenant.max_concurrent"


def test_what_one_level_refuses_is_taken_from_neither() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    one, two = of_acme("one", tokens_per_minute=400), of_acme("two")
    with quotas.call(one) as meter:
        assert meter is not None
        meter.reserve(0, 250)
        meter.used = 250
    assert no_tokens(quotas, one, 0, 200).quota == "tokens_per_minute"  # the tenant has them still
    with quotas.call(two) as meter:
        assert meter is not None
        meter.reserve(0, 300)
        assert no_tokens(quotas, one, 0, 51).quota == "tenant.tokens_per_minute"  # and here the client
        assert (
            no_tokens(quotas, one, 0, 160).quota == "tenant.tokens_per_minute"
        )  # neither; what takes longer
        meter.used = 0
    with quotas.call(one) as meter:
        assert meter is not None
        meter.reserve(0, 150)


def test_outcomes_a_second_and_a_day() -> None:
    clock = Clock()
    quotas, client = Quotas(clock), Client("a", outcomes_per_second=5, outcomes_per_day=100)
    with quotas.call(client) as meter:
        assert meter is not None
        for _ in range(50):  # ten seconds' worth
            meter.take_outcomes(1)
    error = metered(lambda meter: meter.take_outcomes(1), quotas, client)
    assert (error.quota, error.retry_after) == ("outcomes_per_second", pytest.approx(0.2))
    clock.now += 60
    error = metered(lambda meter: meter.owe_outcomes(51), quotas, client)
    assert (error.quota, error.retry_after and error.retry_after > 60) == ("outcomes_per_day", True)
    with quotas.call(client) as meter:
        assert meter is not None
        meter.owe_outcomes(50)
        meter.not_stored(50)
        meter.owe_outcomes(50)


def test_a_stream_owes_what_it_has_taken_too_much() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    one = of_acme("one", Tenant("acme", outcomes_per_second=2), outcomes_per_second=100)
    two = of_acme("two", Tenant("acme", outcomes_per_second=2))
    with quotas.call(one) as mine, quotas.call(two) as other:
        assert mine is not None
        assert other is not None
        assert mine.owed() == 0
        mine.owe_outcomes(60)
        assert mine.owed() == other.owed() == pytest.approx(20.0)
        assert (
            metered(lambda meter: meter.take_outcomes(1), quotas, two).quota == "tenant.outcomes_per_second"
        )
        clock.now += 19.9
        assert other.owed() == pytest.approx(0.1)
        clock.now += 0.2
        assert mine.owed() == other.owed() == 0


@dataclass
class Spent:
    """What a model has seen taken from one bucket: times and sizes, net of what was given back at once."""

    at: list[tuple[float, float]] = field(default_factory=list)

    def fits(self, most: float, seconds: float) -> bool:
        """Whether no stretch of time has more than a full bucket and what came back meanwhile."""
        for i, (start, _) in enumerate(self.at):
            total = 0.0
            for now, size in self.at[i:]:
                total += size
                if total > most + (now - start) * most / seconds + 1e-6:
                    return False
        return True


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),  # who
        st.integers(0, 60),  # prompt
        st.integers(1, 60),  # answer at most
        st.floats(0, 1),  # the part of it that is needed
        st.floats(0, 20),  # seconds until the next
        st.booleans(),  # it ends before the next
    ),
    max_size=30,
)


@given(STEPS, st.integers(20, 120), st.integers(40, 200))
def test_neither_level_is_ever_overdrawn_and_all_is_given_back(
    steps: list[tuple[int, int, int, float, float, bool]], of_client: int, of_tenant: int
) -> None:
    clock = Clock()
    quotas, tenant = Quotas(clock), Tenant("t", tokens_per_minute=of_tenant, max_concurrent=3)
    clients = [of_acme(name, tenant, tokens_per_minute=of_client) for name in ("a", "b", "c")]
    spent = {name: Spent() for name in ("a", "b", "c", "t")}
    with ExitStack() as running:
        for who, prompt, answer, part, pause, ends in steps:
            client = clients[who]
            with ExitStack() as mine:
                try:
                    meter = mine.enter_context(quotas.call(client))
                    assert meter is not None
                    meter.reserve(prompt, answer)
                except QuotaExceeded:
                    clock.now += pause
                    continue
                meter.used += int(answer * part)
                for name in (client.id, "t"):
                    spent[name].at.append((clock.now, meter.used))
                (mine if ends else running).push(mine.pop_all())
                if ends:
                    mine.close()
            clock.now += pause
    for name, most in (*((one.id, of_client) for one in clients), ("t", of_tenant)):
        assert spent[name].fits(most, 60)
    clock.now += 60
    for client in clients:  # nothing runs, and all is there
        with quotas.call(client), quotas.call(client), quotas.call(client) as meter:
            assert meter is not None
            meter.reserve(0, min(of_client, of_tenant))


# -- several edges


def heard(to: Quotas, **others: Quotas) -> None:
    to.used_elsewhere({name: {k: list(v) for k, v in one.used().items()} for name, one in others.items()})


def test_what_was_used_elsewhere_is_used_here() -> None:
    clock = Clock()
    a, b, client = Quotas(clock), Quotas(clock), Client("x", requests_per_minute=60, tokens_per_minute=600)
    heard(a, b=b)
    heard(b, a=a)
    with a.call(client), b.call(client):
        pass
    heard(a, b=b)
    heard(b, a=a)
    for _ in range(58):
        with a.call(client) as meter:
            assert meter is not None
            meter.reserve(5, 5)
            meter.used += 5
    refused(a, client)
    with b.call(client):
        pass  # not heard yet: so much more may be let in
    heard(b, a=a)
    error = refused(b, client)
    assert error.retry_after == pytest.approx(2.0)  # what was too much is owed
    assert no_tokens_left(b, client, 30)
    clock.now += 2.0
    with b.call(client):
        pass


def no_tokens_left(quotas: Quotas, client: Client, size: int) -> bool:
    (bucket,) = [
        used.buckets["tokens_per_minute"] for (kind, _), used in quotas._used.items() if kind == "client"
    ]
    return bucket.wait(size, client.tokens_per_minute, quotas._now()) > 0


def test_calls_at_once_are_counted_at_all_edges_while_they_are_there() -> None:
    a, b, client = Quotas(), Quotas(), Client("x", max_concurrent=2)
    with a.call(client), a.call(client):
        heard(b, a=a)
        refused(b, client)
        heard(b)  # a is gone
        with b.call(client):
            pass
        heard(b, a=a)
        refused(b, client)
    heard(b, a=a)
    with b.call(client), b.call(client):
        pass


def test_an_edge_that_was_there_before_is_not_counted_from_its_beginning() -> None:
    clock = Clock()
    a, b, client = Quotas(clock), Quotas(clock), Client("x", requests_per_minute=60)
    for _ in range(60):
        with a.call(client):
            pass
    heard(b, a=a)
    for _ in range(60):
        with b.call(client):
            pass
    refused(b, client)


def test_who_asks_one_edge_for_hours_owes_nothing_at_the_other() -> None:
    clock = Clock()
    a, b, client = Quotas(clock), Quotas(clock), Client("x", requests_per_minute=60)
    heard(b, a=a)
    for _ in range(600):
        clock.now += 1.0
        with a.call(client):
            pass
        heard(b, a=a)
    with b.call(client):
        pass
    for _ in range(600):
        clock.now += 1.0
        with a.call(client):
            pass
        heard(b, a=a)
    with b.call(client):
        pass


def test_only_what_moves_is_told() -> None:
    clock = Clock()
    quotas, client = Quotas(clock), Client("x", requests_per_minute=60)
    with quotas.call(client):
        assert quotas.used() == {"client:x": [1.0, 0.0, 0.0, 0.0, 1.0]}
    assert quotas.used() == {"client:x": [1.0, 0.0, 0.0, 0.0, 0.0]}
    clock.now += 61
    assert quotas.used() == {}
