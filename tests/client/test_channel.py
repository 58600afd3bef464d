"""Failed calls as ClientError; no proxy for the own machine."""

import pytest

from router.client import Client, ClientError
from router.client.channel import channel_options, is_loopback
from router.errors import FieldViolation


@pytest.fixture
def client(remote):
    with Client(remote.target, timeout=10) as made:
        yield made


def test_reason_and_metadata_are_read(client):
    with pytest.raises(ClientError) as caught:
        client.generate("hi", adapter="nobody", request_id="req-1")
    error = caught.value
    assert (error.code, error.reason, error.request_id) == ("NOT_FOUND", "ADAPTER_NOT_FOUND", "req-1")
    assert error.metadata == {"resource": "nobody"}
    assert not error.unreachable
    assert str(error) == "NOT_FOUND: adapter 'nobody' not found"


def test_every_bad_field_is_read(client):
    with pytest.raises(ClientError) as caught:
        client.generate("hi", temperature=-1.0)
    assert caught.value.violations == (FieldViolation("sampling.temperature", "must be in [0, 2]"),)
    assert caught.value.retry_after == 2.0


def test_a_stream_that_began_is_not_repeated(client, remote):
    remote.inference.break_after_first_delta = True
    with pytest.raises(ClientError) as caught:
        list(client.stream("hi"))
    assert caught.value.code == "UNAVAILABLE"
    assert not caught.value.unreachable
    assert len(remote.inference.requests) == 1


@pytest.mark.slow
def test_nobody_there_is_unreachable():
    with Client("127.0.0.1:1", timeout=10) as client, pytest.raises(ClientError) as caught:
        client.generate("hi")
    assert caught.value.unreachable


def test_a_passed_deadline_is_told(client, remote):
    remote.inference.hang = True
    with pytest.raises(ClientError) as caught:
        list(client.stream("hi", timeout=0.2))
    remote.inference.cancelled.set()
    assert caught.value.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("localhost:1", True),
        ("127.0.0.1:50051", True),
        ("[::1]:5", True),
        ("unix:/run/x", True),
        ("127.evil.example:1", False),
        ("router.ns.svc:50051", False),
    ],
)
def test_no_proxy_for_the_own_machine(target, own):
    assert is_loopback(target) is own
    assert (("grpc.enable_http_proxy", 0) in channel_options(target)) is own
