import pytest

from router.cli.connect import decision_line, override_line, usage_line
from router.types import AdapterRef, Decision, MixturePart, Override, Reason, Usage

MEDICAL = AdapterRef("medical", "1.0.0")


@pytest.mark.parametrize(
    ("decision", "line"),
    [
        (Decision(MEDICAL, Reason.EXPLICIT, confidence=1.0), "medical@1.0.0  (explicit)"),
        (
            Decision(
                None,
                Reason.EXPLICIT,
                mixture=(MixturePart(MEDICAL, 0.7), MixturePart(AdapterRef("legal", "2"), -0.3)),
            ),
            "medical@1.0.0=0.7,legal@2=-0.3  (explicit)",
        ),
        (
            Decision(MEDICAL, Reason.CLASSIFIED, confidence=0.931, classifier="examples"),
            "medical@1.0.0  confidence 0.93  by examples  (classified)",
        ),
        (
            Decision(None, Reason.ABSTAINED, confidence=0.41, threshold=0.5),
            "base  (abstained: best 0.41, needed 0.50)",
        ),
        (Decision(None, Reason.ABSTAINED, threshold=0.5), "base  (abstained: needed 0.50)"),
        (Decision(None, Reason.FALLBACK), "base  (fallback)"),
    ],
)
def test_decisions(decision, line):
    assert decision_line(decision) == line


def test_usage_tells_tokens_and_speed():
    usage = Usage(87, 64, 31, 0.0, 0.12, 3.12)
    assert usage_line(usage, "stop") == "stop  87 + 31 tokens (64 cached)  first after 120 ms  10.0 tokens/s"


def test_usage_of_an_empty_answer_has_no_speed():
    assert usage_line(Usage(prompt_tokens=5), "stop") == "stop  5 + 0 tokens"


def test_an_override_tells_who_when_why_and_against_what():
    made = Override("1.0.0", "127.0.0.1", 0.0, "ticket 7", "no report.json")
    said = 'by 127.0.0.1 at 1970-01-01 00:00 UTC, "ticket 7"; the gate had said: no report.json'
    assert override_line(made) == said
    assert ", no reason given; " in override_line(Override("1.0.0", "me", 0.0))


def lines(done):
    return done.err.strip().splitlines()


@pytest.mark.slow
def test_no_server_says_how_to_start_one(cli):
    done = cli("ask", "hi", "--server", "127.0.0.1:1")
    assert done.code == 1
    (line,) = lines(done)
    assert "no server answers at 127.0.0.1:1: start one with `lora-router serve`" in line


def test_a_host_that_is_not_known_was_never_running(cli):
    done = cli("ask", "hi", "--server", "nowhere.invalid:50051")
    assert done.code == 1
    expected = "nowhere.invalid:50051 cannot be resolved: no such host is known; --server takes HOST:PORT"
    assert lines(done) == [f"lora-router: {expected}"]


@pytest.mark.slow
def test_an_answer_that_breaks_off_ends_its_line(cli, remote):
    remote.inference.hang = True
    done = cli("ask", "hi", "--timeout", "0.5")
    assert (done.code, done.out) == (1, "Chapter\n")
    said = "no whole answer within the timeout (raise --timeout or lower --max-tokens)"
    assert lines(done)[-1] == f"lora-router: {said}"


@pytest.mark.slow
def test_without_a_flag_the_configured_address_is_asked(cli, own_folder):
    (own_folder / "lora-router.toml").write_text('listen = "0.0.0.0:2"\n')
    assert "127.0.0.1:2" in cli("adapters", "list").err


def test_an_unknown_adapter_says_where_to_look(cli, remote):
    done = cli("ask", "hi", "--adapter", "nobody", "--json")
    assert done.code == 1
    assert lines(done) == ["lora-router: adapter 'nobody' not found (see `lora-router adapters list`)"]


def test_bad_fields_are_named(cli, remote):
    done = cli("ask", "hi", "--temperature", "-1", "--json")
    assert done.code == 2
    assert lines(done) == ["lora-router: sampling.temperature: must be in [0, 2]"]
