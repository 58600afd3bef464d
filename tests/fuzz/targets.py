"""What is fuzzed: every parser of what strangers, operators' files or earlier runs say.

A parser may raise a RouterError, or the exception that it documents; anything else, and more than 100 ms of
processor time, is a finding.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from router.access.audit import START, chained, verify
from router.access.clients import Clients, hash_of, parse_clients
from router.cli.command import CliError
from router.cli.settings import load_settings
from router.engine.constrained.source import grammar_text
from router.errors import MOST_FINDINGS, ConfigError, FieldViolation, InvalidRequest, RouterError
from router.extensions.experiments.cli.create import read_plan_file
from router.extensions.experiments.plan_file import example_plan, plan_of, typed
from router.registry.choices import DefaultChoices
from router.registry.format.checks import check_base, check_invocation, check_targets, plan_sites
from router.registry.format.lora_config import LoraSettings, parse_lora_config
from router.registry.format.manifest import BasePin, ReportError, parse_manifest, parse_probes, parse_report
from router.registry.format.tensors import LENGTH_BYTES, TensorEntry, header_length, match_sites, parse_header
from router.registry.format.trust import BadSignature, PublicKey, Signature, parse_lock
from router.registry.format.untrusted import FolderFinding, FolderFindings
from router.registry.gate import judge
from router.routing.calibration import Calibration, read_calibration
from router.server.call import caller_of, request_id_of
from router.server.grpc_adapter import status_of
from router.types import CONSTRAINT_KINDS, Constraint
from tests.audited import entries
from tests.fuzz import doors, messages
from tests.fuzz.inputs import Change, bytes_changed, json_changed, message_changed, toml_changed
from tests.registry.signing import Signer
from tests.registry.tiny import BASE, CONFIG, SITES, lora_tensors, safetensors

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
UNITS = 100  # of work that an input may take: some 100 ms on the machine where this was chosen
MOST_TOLD = 1 << 20  # characters of all findings of one file
CLIENT = f"""[[client]]
id = "a"
token_sha256 = ["{"ab" * 32}"]
roles = ["infer"]
adapters = ["medical", "x-*"]
"""
LIMITS = (
    "requests_per_minute = 60\ntokens_per_minute = 1000\nmax_concurrent = 8\nexpires = 2027-01-01T00:00:00Z\n"
)
GROUPS = """tenant = "t"
experiments = ["x-*"]
issuer = "https://idp.example"
subject = "svc-a"
[[tenant]]
id = "t"
share = 2.5
outcomes_per_second = 10
outcomes_per_day = 1000
[[issuer]]
url = "https://idp.example"
audience = "router"
algorithms = ["RS256"]
leeway_seconds = 5
"""
CALIBRATED = Calibration(
    created="2026-12-02T10:00:00Z",
    threshold=0.6,
    target=0.05,
    strange_target=0.05,
    delta=0.05,
    adapters=("medical", "qa"),
    report={"rows": 100, "tested": [{"threshold": 0.6, "routed": 90}]},
)
MANIFEST = """[adapter]
name = "medical"
version = "1.0.0"
description = "answers questions"
domain = "medicine"
task = "qa"
license = "Apache-2.0"
[base]
model = "org/base"
digest = "%s"
[prompt]
system = "Be brief."
template = "Q: {prompt} A:"
[generation]
max_tokens = 64
min_tokens = 1
temperature = 0.7
top_p = 0.9
top_k = 40
seed = 1
stop = ["\\n\\n", "Q:"]
regex = "[a-c]+"
[routing]
examples = ["What is the dose?", "Is it safe?"]
negative_examples = ["Who is liable?"]
keywords = ["dose"]
""" % ("ab" * 32)
SETTINGS = 'listen = "127.0.0.1:1"\nmax_running = 4\nabstain_threshold = 0.5\nnative = true\nslots = 32\n'


@dataclass(frozen=True)
class Target:
    """A parser, what its inputs look like, and where one begins."""

    name: str
    run: Callable[[bytes], object]
    change: Change
    examples: Callable[[], Sequence[bytes]]

    def seeds(self) -> list[bytes]:
        """Good inputs, and those that once were findings."""
        return [*self.examples(), *(path.read_bytes() for path in self.kept())]

    def kept(self) -> list[Path]:
        """The files of its corpus."""
        return sorted((CORPUS / self.name).glob("*"))


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one input: seconds of processor time, and what is wrong, '' if nothing."""

    seconds: float
    wrong: str = ""
    trace: str = ""

    @property
    def kind(self) -> str:
        """The same for the same fault."""
        return self.wrong.partition(":")[0]


def attempt(target: Target, data: bytes) -> Attempt:
    """Run a target on an input."""
    start, wrong, trace = time.thread_time(), "", ""
    try:
        target.run(data)
    except RouterError:
        pass
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        wrong, trace = f"{type(error).__name__} in {last.name}: {error}"[:300], traceback.format_exc()
    seconds = time.thread_time() - start
    return Attempt(seconds, wrong, trace)


def tried(target: Target, data: bytes) -> Attempt:
    """The same; an input that takes more work than `UNITS` three times is wrong, too."""
    found = attempt(target, data)
    most = UNITS * unit_seconds()
    if found.wrong or found.seconds <= most:
        return found
    again = min((attempt(target, data) for _ in range(2)), key=lambda one: one.seconds)
    return again if again.seconds <= most else Attempt(again.seconds, f"slow: over {UNITS} units of work")


def work(units: int) -> None:
    """So many units of work, which take as long as the machine is slow."""
    for number in range(units * 40_000):
        number * number % 7


@cache
def unit_seconds() -> float:
    """Processor time of a unit here."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        work(1)
        times.append(time.thread_time() - start)
    return min(times)


@cache
def folder() -> Path:
    """For parsers of files: in memory where the system has such a folder."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


def _check(findings: Sequence[FolderFinding]) -> None:
    """Findings are fit for logs and callers: printable, and not without end."""
    assert all(f.message.isprintable() and f.where.isprintable() for f in findings), "unprintable"
    assert sum(len(f.message) + len(f.where) for f in findings) < MOST_TOLD, "endless"


def _one_line(text: str) -> None:
    if not text.isprintable():
        raise AssertionError(f"not one line: {text!r}")


def manifest(data: bytes) -> None:
    """adapter.toml."""
    made, findings = parse_manifest(data, "adapter")
    _check(findings)
    made.profile()


def adapter_config(data: bytes) -> None:
    """adapter_config.json, and what it comes to for the sites of a base."""
    settings, findings = parse_lora_config(data)
    _check(findings)
    if settings is not None:
        found = FolderFindings()
        pairs = match_sites(_good_header(), SITES, found).pairs
        check_targets(settings, SITES, pairs, found)
        check_base(BasePin(), settings.base_model, BASE, found)
        check_invocation(settings.invocation_tokens, BASE.vocab_size, found)
        for plan in plan_sites(settings, pairs, SITES, 64, found):
            assert plan.scaling > 0
        _check(found.items)


def weights(data: bytes) -> None:
    """The header of adapter_model.safetensors; the file is as long as it says, where it can be."""
    found = FolderFindings()
    size = len(data)
    length = header_length(data[:LENGTH_BYTES], size, found)
    header = None if length is None else parse_header(data[: LENGTH_BYTES + length], size, found)
    if header is not None:
        tensors = match_sites(header, SITES, found)
        plan_sites(LoraSettings(r=4), tensors.pairs, SITES, 64, found)
    _check(found.items)


def probes(data: bytes) -> None:
    """probes.jsonl."""
    made, findings = parse_probes(data)
    _check(findings)
    assert all(probe.passes(probe.expect) for probe in made)


def report(data: bytes) -> None:
    """report.json, and the gate's judgement of it."""
    try:
        card = parse_report(data)
    except ReportError as error:
        _one_line(str(error))
        return
    assert judge(card, "", BASE).finding.isprintable()


def calibration(data: bytes) -> None:
    """calibration.json."""
    read_calibration(_file("calibration.json", data))


def clients(data: bytes) -> None:
    """The clients file."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        found = parse_clients(text)
    except ConfigError as error:
        _one_line(error.message)
        return
    assert all(client.expired(1e12) or client.expires is None for client in found.all)


def config(data: bytes) -> None:
    """lora-router.toml."""
    load_settings(config=_file("lora-router.toml", data))


def plan_file(data: bytes) -> None:
    """The file of an experiment's plan."""
    with suppress(CliError, InvalidRequest):
        plan_of(typed(read_plan_file(_file("plan.toml", data)), split="90/10"))


def tokens(data: bytes) -> None:
    """Tokens and the other metadata of a call."""
    text = data.decode("utf-8", "replace")
    good = "lrk_a_" + "x" * 43
    known = Clients(parse_clients(CLIENT.replace("ab" * 32, hash_of(good))).all)
    client = known.by_token(text)
    assert (client is not None) == (text == good)
    known.by_names([text])
    assert request_id_of([("x-request-id", text)]).isprintable()
    caller_of(text)


def grammar(data: bytes) -> None:
    """Constraints of answers; the first byte says of which kind."""
    kind = CONSTRAINT_KINDS[data[0] % len(CONSTRAINT_KINDS)] if data else CONSTRAINT_KINDS[0]
    text = data[1:].decode("utf-8", "replace")
    if kind == "choices":
        grammar_text(Constraint(kind, choices=tuple(text.split("\n"))))
    else:
        grammar_text(Constraint(kind, text))


def minisign(data: bytes) -> None:
    """Signatures and public keys."""
    text = data.decode("utf-8", "replace")
    parsers: tuple[Callable[[], object], ...] = (
        lambda: Signature.parse(data),
        lambda: PublicKey.parse(text),
        lambda: _public().check(b"message", Signature.parse(data)),
    )
    for parse in parsers:
        try:
            parse()
        except BadSignature as error:
            _one_line(str(error))


def lock(data: bytes) -> None:
    """The list of digests."""
    try:
        found = parse_lock(data.decode("utf-8"))
    except ValueError:  # documented; the setting's reader makes a ConfigError of it
        return
    assert all(len(digest) == 64 for digest in found)


def audit(data: bytes) -> None:
    """Lines of an audit file."""
    path = _file("audit.jsonl", data)
    found = verify(path)
    assert sum(1 for _ in entries(path)) <= found.lines


def state(data: bytes) -> None:
    """defaults.json: what the registry remembers."""
    _file("defaults.json", data)
    DefaultChoices(folder(), []).read()


def errors(data: bytes) -> None:
    """Texts of errors, as callers are told them."""
    text = data.decode("utf-8", "replace")
    many = InvalidRequest([FieldViolation(text, text)] * (MOST_FINDINGS + 1))
    for error in (many, ConfigError(text, key=text), OSError(text)):
        told = status_of(error, "id")
        size = len(told.message.encode()) + sum(len(k) + len(v) for k, v in told.trailers)
        assert size < 8192, "more than gRPC sends"
        assert told.message.isprintable()


# -- Where inputs begin.


@cache
def _good_header() -> Mapping[str, TensorEntry]:
    data = safetensors(lora_tensors())
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    header = parse_header(data[: LENGTH_BYTES + length], len(data), FolderFindings())
    assert header is not None
    return header


SIGNER = Signer(b"12345678", bytes(range(32)))


@cache
def _public() -> PublicKey:
    return SIGNER.public


def _some_tensors() -> list[bytes]:
    few = {f"model.layers.0.{name}": (4, 4) for name in ("self_attn.q_proj", "mlp.up_proj")}
    return [safetensors(lora_tensors(rank=1, sites=few)), safetensors(lora_tensors(rank=1))]


def _signatures() -> list[bytes]:
    return [SIGNER.signature(b"message", "comment").encode(), SIGNER.public_text().encode()]


def _audit_lines() -> list[bytes]:
    one, own = chained({"client": "a", "code": "OK"}, START)
    two, _ = chained({"client": "b", "code": "OK"}, own)
    return [f"{one}\n{two}\n".encode()]


def _defaults() -> list[bytes]:
    served = {"1.0.0": {"weights_sha256": "ab" * 32, "routed": True}}
    override = {"version": "1", "by": "a", "time": 1.5, "reason": "", "finding": "", "weights_sha256": ""}
    choice = {"version": "1.0.0", "override": override, "served": served, "first": "1.0.0"}
    return [json.dumps({"format": 2, "defaults": {"medical": choice}}).encode()]


def _report_seeds() -> list[bytes]:
    """A report without what the gate does not read."""
    whole = json.loads((ROOT / "adapters" / "medical" / "report.json").read_bytes())
    keys = ("schema", "adapter", "base", "metric", "data", "regressions")
    short = {key: whole[key] for key in keys}
    short["arms"] = {"adapter": {"score": whole["arms"]["adapter"]["score"]}}
    short["gains"] = {"adapter - base": {"score": whole["gains"]["adapter - base"]["score"]}}
    return [json.dumps(short).encode()]


def _grammars() -> list[bytes]:
    texts = {
        "json_schema": '{"type": "object", "properties": {"a": {"enum": ["x", 1]}, "b": {"$ref": "#/a"}}}',
        "regex": "(a|b){1,3}[0-9]*",
        "choices": "yes\nno",
        "grammar": 'start: "a" b\nb: /[0-9]+/ // comment\n',
    }
    return [bytes([CONSTRAINT_KINDS.index(kind)]) + text.encode() for kind, text in texts.items()]


def _one_infer() -> Sequence[bytes]:
    return [doors.good_infer(b'{"max_tokens": 4}').SerializeToString()]


def _given(*examples: bytes | str) -> Callable[[], Sequence[bytes]]:
    return lambda: [one.encode() if isinstance(one, str) else one for one in examples]


TARGETS = {
    target.name: target
    for target in (
        Target("manifest", manifest, toml_changed, _given(MANIFEST)),
        Target("adapter-config", adapter_config, json_changed, lambda: [json.dumps(CONFIG).encode()]),
        Target("weights", weights, bytes_changed, _some_tensors),
        Target("probes", probes, json_changed, _given('{"prompt": "a", "expect": "b", "max_tokens": 4}')),
        Target("report", report, json_changed, _report_seeds),
        Target("calibration", calibration, json_changed, _given(CALIBRATED.model_dump_json())),
        Target("clients", clients, toml_changed, _given(CLIENT + LIMITS, CLIENT + GROUPS)),
        Target("config", config, toml_changed, _given(SETTINGS)),
        Target("plan-file", plan_file, toml_changed, _given(example_plan())),
        Target("tokens", tokens, bytes_changed, _given("lrk_a_" + "x" * 43, "ipv6:%5B::1%5D:50123")),
        Target("grammar", grammar, bytes_changed, _grammars),
        Target("minisign", minisign, bytes_changed, _signatures),
        Target("lock", lock, bytes_changed, _given("ab" * 32 + " medical\n# comment\n")),
        Target("audit", audit, bytes_changed, _audit_lines),
        Target("state", state, json_changed, _defaults),
        Target("errors", errors, bytes_changed, _given("no '/srv/models/a b.bin', see http://wiki.local/x")),
        Target("requests", messages.request, message_changed(messages.REQUESTS), messages.good_requests),
        Target("experiments", messages.plan, message_changed(messages.PLANS), messages.good_plans),
        Target("chat", doors.chat, doors.json_grown, doors.good_chats),
        Target("completion", doors.completion, doors.json_grown, doors.good_completions),
        Target("response", doors.response, doors.json_grown, doors.good_responses),
        Target("embedding", doors.embedding, doors.json_grown, _given('{"model": "base", "input": ["a"]}')),
        Target("feedback", doors.vote, doors.json_grown, doors.good_votes),
        Target("ofrep", doors.flags, doors.json_grown, _given('{"context": {"targetingKey": "u", "a": 1}}')),
        Target("form", doors.form, doors.form_grown, _given("csrf=a&name=b%20c&text=d+e")),
        Target("kserve", doors.infer, doors.infer_grown, _one_infer),
        Target("wire", doors.wire, doors.wire_grown(doors.KINDS), doors.good_messages),
    )
}
