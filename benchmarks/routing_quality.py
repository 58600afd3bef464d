"""`python -m benchmarks.routing_quality FILE`: how well classifiers and their cascade route requests.

Beside them, on the same requests and the same adapters' examples: the PyPI package `semantic-router` with the
same sentence encoder, in an environment of its own in the user's cache folder. FILE and the one of --ood have
JSON lines {"text", "label", "source"}; the adapters are those of recipes/*.toml. No threshold is calibrated
here: `lora-router route evaluate` measures calibrated routing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import environment as without_settings
from benchmarks.report import quantile, write
from benchmarks.routing import ROOT, adapters
from router.calibration.model import CalibrationError, axes_of
from router.classifiers.contract import Classifier, read_answers
from router.extensions.calibration.evaluation import coverage_at, macro_f1, risk_coverage
from router.extensions.calibration.rows import DataRow, read_rows
from router.folders import cache_folder
from router.models import fetch_encoder
from router.plugins import PluginHost
from router.routing.policy import PlainRule
from router.types import AdapterProfile, Request, Turn, Vote

CLASSIFIERS = "keywords,linear,embedding"
RISK = 0.05
TIMED = 60  # requests whose time is taken, one by one
BATCH = 16
Confidences = Mapping[str, float]
PACKAGE = "semantic-router>=1.1,<2"
SCRIPT = Path(__file__).with_name("semantic_router_peer.py")
PEER = cache_folder() / "peers" / "semantic-router"


@dataclass(frozen=True, slots=True)
class Arm:
    """Confidences of adapters for each request, and what one request costs."""

    known: Sequence[Confidences]
    strange: Sequence[Confidences]
    milliseconds: Sequence[float]
    threads: int = 0  # of torch, where an arm says so


def arms(profiles: Sequence[AdapterProfile], known: Sequence[str], strange: Sequence[str]) -> dict[str, Arm]:
    """Each classifier of the plugins folder, and all of them one after the other."""
    host = PluginHost([ROOT / "plugins"], CLASSIFIERS)
    host.refresh()
    found = {}
    for registration in host.registrations():
        classifier = registration.classifier
        classifier.warmup()
        classifier.fit(profiles)
        answer = _answerer(classifier)
        times = [_timed(answer, text) for text in known[:TIMED]]
        found[registration.name] = Arm(answer(known), answer(strange), times)
    known_votes, strange_votes = (_cascade(found, profiles, place) for place in ("known", "strange"))
    return {**found, "cascade": Arm(known_votes, strange_votes, [])}


def _answerer(classifier: Classifier) -> Callable[[Sequence[str]], list[Confidences]]:
    def answer(texts: Sequence[str]) -> list[Confidences]:
        given: list[Confidences] = []
        for i in range(0, len(texts), BATCH):
            batch = [Request(str(i), turns=(Turn("user", text),)) for text in texts[i : i + BATCH]]
            given += [a.confidences for a in read_answers(classifier.classify_batch(batch), len(batch))]
        return given

    return answer


def _timed(answer: Callable[[Sequence[str]], object], text: str) -> float:
    started = time.perf_counter()
    answer([text])
    return (time.perf_counter() - started) * 1000


def _cascade(found: Mapping[str, Arm], profiles: Sequence[AdapterProfile], place: str) -> list[Confidences]:
    """The first sure vote, as a server without a calibration decides; else what the last classifier says."""
    policy, names, joined = PlainRule(kinds=axes_of(profiles)), {p.name for p in profiles}, []
    for given in zip(*(getattr(arm, place) for arm in found.values()), strict=True):
        votes = [Vote(name, one, not one) for name, one in zip(found, given, strict=True)]
        concluded = policy.conclude(votes, names)
        joined.append({concluded.adapter: concluded.confidence} if concluded.adapter else given[-1])
    return joined


def best(confidences: Confidences) -> tuple[str, float]:
    """The adapter that a request would be given if it had to be given to one."""
    return max(confidences.items(), key=lambda item: item[1], default=("", 0.0))


def judge(name: str, arm: Arm, rows: Sequence[DataRow], labels: Sequence[str]) -> dict[str, Any]:
    """One line of the table. The threshold is the loosest with at most RISK error on these very rows."""
    said, confidence = zip(*map(best, arm.known), strict=True)
    right = np.array([s == row.label for s, row in zip(said, rows, strict=True)])
    forced = [(row.label, s) for row, s in zip(rows, said, strict=True) if row.label]
    curve = risk_coverage(np.array(confidence), right)
    threshold = min((t for t, _, risk in curve if risk <= RISK), default=float("inf"))
    strange = [best(one)[1] >= threshold for one in arm.strange]
    return {
        "router": name,
        "accuracy": sum(t == s for t, s in forced) / len(forced),
        "macro-F1": macro_f1([t for t, _ in forced], [s for _, s in forced], labels),
        f"coverage at {RISK:.0%} error": coverage_at(curve, RISK),
        "threshold there": threshold,
        "OOD routed there": sum(strange) / len(strange) if strange else "-",
        "p50 ms": quantile(arm.milliseconds, 0.5) if arm.milliseconds else "-",
    }


def shares(
    found: Mapping[str, Arm], rows: Sequence[DataRow], key: Callable[[DataRow], str]
) -> list[dict[str, Any]]:
    """Share of requests given to the right adapter, by label or source, if each had to be given to one."""
    lines = []
    for group in sorted({key(row) for row in rows if row.label}):
        places = [i for i, row in enumerate(rows) if row.label and key(row) == group]
        line: dict[str, Any] = {"": group, "requests": len(places)}
        for name, arm in found.items():
            line[name] = sum(best(arm.known[i])[0] == rows[i].label for i in places) / len(places)
        lines.append(line)
    return lines


def peer(profiles: Sequence[AdapterProfile], known: Sequence[str], strange: Sequence[str]) -> Arm:
    """semantic-router on the same examples."""
    given: Answers = ask({p.name: p.examples for p in profiles}, [*known, *strange], TIMED)
    cut = len(known)
    return Arm(given.confidences[:cut], given.confidences[cut:], given.milliseconds, given.threads)


def _about_times(found: Mapping[str, Arm]) -> list[str]:
    """How the times of the two that run an encoder compare."""
    return [
        f"p50 ms: {name} ran in a process of its own after ours were done, with {arm.threads} threads, as "
        "torch sets them; embedding encodes with one thread, as in the server"
        for name, arm in found.items()
        if arm.threads
    ]


@dataclass(frozen=True, slots=True)
class Answers:
    """Confidences of the routes it returned for each text, the time of single requests, and its threads."""

    confidences: list[dict[str, float]]
    milliseconds: list[float]
    threads: int


def environment() -> Path:
    """Python of the peer's environment, installed on first use.

    Its packages are its own; torch and transformers, which it asks for without an upper bound, are those of
    this environment, so that both sides run the encoder on the same library.
    """
    python = PEER / "bin" / "python"
    if not (PEER / "installed").exists():
        print(f"installing {PACKAGE} into {PEER} (a minute or two, once)", file=sys.stderr)
        venv.create(PEER, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", PACKAGE, "requests"], check=True)
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        theirs = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
        Path(theirs.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (PEER / "installed").touch()
    return python


def ask(routes: Mapping[str, Sequence[str]], texts: Sequence[str], times: int) -> Answers:
    """What it says to `texts`; the first `times` are asked again, one by one, with a clock."""
    task = {"encoder": str(fetch_encoder()), "routes": routes, "texts": texts, "times": times}
    said = subprocess.run(
        [str(environment()), str(SCRIPT)],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=without_settings({}),  # its documentation asks for none
    )
    if said.returncode:
        raise SystemExit(f"semantic-router failed; its messages are above. To install it anew, delete {PEER}")
    return Answers(**json.loads(said.stdout.splitlines()[-1]))


def installed() -> str:
    """Name and version of the peer."""
    code = "from importlib.metadata import version; print('semantic-router', version('semantic-router'))"
    return subprocess.run(
        [str(environment()), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> None:
    """Measure, print, write to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="labelled requests")
    parser.add_argument("--ood", type=Path, help="requests that no adapter should get")
    parser.add_argument("--no-peer", action="store_true", help="leave semantic-router out")
    options = parser.parse_args()
    profiles = adapters()
    labels = [profile.name for profile in profiles]
    try:
        rows = read_rows(options.file, labels)
        strange = [row.text for row in read_rows(options.ood, labels, "")] if options.ood else []
    except CalibrationError as error:
        parser.error(str(error))
    if not any(row.label for row in rows):
        parser.error(f"{options.file}: no row has the label of an adapter")
    if not options.no_peer:
        environment()
    known = [row.text for row in rows]
    found = arms(profiles, known, strange)
    if not options.no_peer:
        found["semantic-router"] = peer(profiles, known, strange)
    lines = [judge(name, arm, rows, labels) for name, arm in found.items()]
    groups = {
        "label": shares(found, rows, lambda r: r.label),
        "source": shares(found, rows, lambda r: r.source),
    }
    notes = [
        "accuracy, macro-F1: every request with a label given to the adapter with the highest confidence",
        f"coverage at {RISK:.0%} error: share of all requests, those for the base too, that can be routed"
        " with at most that error; the threshold is chosen on these very requests, for each router alike",
        *_about_times(found),
        "cascade: the first that is sure at the default threshold decides, else the last one's best",
    ]
    workload = (
        f"{len(rows)} requests of {options.file.name}, {len(strange)} for no adapter; adapters of recipes/."
    )
    about = {} if options.no_peer else {"peer": installed()}
    tables = {f"Right by {name}": one for name, one in groups.items()}
    print(write("routing-quality", workload, lines, notes, tables=tables, **about).read_text())


if __name__ == "__main__":
    main()
