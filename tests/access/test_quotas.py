"""Calls at once, calls a minute, tokens a minute."""

from __future__ import annotations

import pytest

from router.access.clients import Client, parse_clients
from router.access.quotas import Bucket, Quotas
from router.errors import ConfigError, QuotaExceeded


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(quotas: Quotas, client: Client) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught, quotas.call(client):
        pytest.fail("let in")
    return caught.value


def no_tokens(quotas: Quotas, client: Client, prompt: int, answer: int) -> QuotaExceeded:
    with quotas.call(client) as meter:
        assert meter is not None
        with pytest.raises(QuotaExceeded) as caught:
            meter.reserve(prompt, answer)
    return caught.value


def test_quotas_are_read() -> None:
    text = '[[client]]\nid = "a"\ncert = "x"\n'
    (found,) = parse_clients(text + "requests_per_minute = 6\ntokens_per_minute = 7\nmax_concurrent = 8").all
    assert (found.requests_per_minute, found.tokens_per_minute, found.max_concurrent) == (6, 7, 8)
    for odd in ("0", "-1", "1.5", "true", '"9"'):
        with pytest.raises(ConfigError, match="whole number"):
            parse_clients(f"{text}max_concurrent = {odd}")


def test_without_quotas_nothing_is_counted() -> None:
    quotas = Quotas()
    for _ in range(1000):
        with quotas.call(Client("a")) as meter:
            assert meter is None


def test_calls_at_once() -> None:
    quotas, client, other = Quotas(), Client("a", max_concurrent=2), Client("b", max_concurrent=1)
    with quotas.call(client), quotas.call(client):
        error = refused(quotas, client)
        assert (error.quota, error.retry_after) == ("max_concurrent", 1.0)
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
    bucket = Bucket(0)
    assert bucket.take(10, 10, 0) == 0
    assert bucket.take(5, 20, 0) == 0  # ten more than before
    assert bucket.take(5, 5, 0) == 0
    assert bucket.take(1, 5, 0) == pytest.approx(12)
    bucket.give(100)
    assert bucket.take(6, 5, 0) > 0
