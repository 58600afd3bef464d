"""`python -m benchmarks.public_routing FOLDER`: how well requests of public data sets are routed.

Adapters are made of the data's own examples. Router and plugins are those of a server with its defaults.
There is no calibration but the examples' own. FOLDER holds checkouts of three repositories, whose data this
project does not copy. The encoder that is shipped learned from the train parts of the three sets of intents,
so --encoders names a folder with one for each set that has not seen it: ENCODERS/CLINC150 and so on, by
`recipes/routing/encoder.py FOLDER/Few-Shot-Intent-Detection ENCODERS/CLINC150 --leave-out CLINC150`.

    git clone https://github.com/jianguoz/Few-Shot-Intent-Detection   BANKING77, HWU64, CLINC150 (CC BY)
    git clone https://github.com/clinc/oos-eval                       the domains of CLINC150 (CC BY 3.0)
    git clone https://github.com/qpiai/adaptive-minds                 30 adapters described (Apache-2.0)

Without `--test` the validation rows are read: make every choice with these. `--test` reads the test rows, and
the page says so: read them once, when nothing will be changed any more. Each section is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import write
from router.cli.adapter_folders import read_profiles
from router.extensions.calibration.offline import FixedCatalog, asking, started_router
from router.models import encoder
from router.plugins import PluginHost
from router.routing.in_force import RuleInForce
from router.routing.policy import Rule
from router.types import AdapterProfile

ROOT = Path(__file__).parents[1]
INTENTS = ("BANKING77", "CLINC150", "HWU64")
WARM = 20  # requests before the time is taken
Row = tuple[str, str]  # text and label; "" is none of the adapters


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a table: adapters, and requests for them and for none of them."""

    name: str
    profiles: Sequence[AdapterProfile]
    rows: Sequence[Row]
    unseen: str = "CLINC150"  # the set that the encoder must not have learned from; "": any encoder will do


class Data:
    """The three checkouts; `part` is `valid` or `test`, `most` the rows that are asked at most (0: all)."""

    def __init__(self, folder: Path, part: str, most: int) -> None:
        self.part, self._most = part, most
        self._sets = _found(folder, "Few-Shot-Intent-Detection") / "Datasets"
        self._oos, self._minds = _found(folder, "oos-eval"), _found(folder, "adaptive-minds")

    def rows(self, name: str, part: str) -> list[Row]:
        """Of one file pair of the intent sets."""
        folder = self._sets / name / part
        texts, labels = ((folder / file).read_text("utf-8").splitlines() for file in ("seq.in", "label"))
        return list(zip(texts, labels, strict=True))

    def asked(self, name: str) -> list[Row]:
        """The requests of an intent set, evenly spread."""
        return self._spread(self.rows(name, self.part))

    def strangers(self) -> list[Row]:
        """CLINC150's requests that none of its intents is for."""
        clinc = json.loads((self._oos / "data/data_full.json").read_text("utf-8"))
        return self._spread(
            [(text, "") for text, _ in clinc["oos_test" if self.part == "test" else "oos_val"]]
        )

    def domains(self) -> dict[str, str]:
        """The domain of each intent of CLINC150."""
        domains = json.loads((self._oos / "data/domains.json").read_text("utf-8"))
        return {intent: domain for domain, intents in domains.items() for intent in intents}

    def described(self) -> tuple[list[AdapterProfile], list[Row]]:
        """The adapters of adaptive-minds, without examples, and the requests that it labels."""
        catalog = yaml.safe_load((self._minds / "catalogs/qwen25_30.yaml").read_text("utf-8"))
        profiles = [
            AdapterProfile(
                name=one["name"].lower(),
                version="1",
                domain=one["name"].lower(),
                description=one["description"],
                keywords=tuple(one["keywords"]),
            )
            for one in catalog["lora_adapters"]
        ]
        lines = (self._minds / "evals/gold/routing_gold.jsonl").read_text("utf-8").splitlines()
        names = {profile.name for profile in profiles}
        rows = [(row["query"], row["expected_adapter"].lower()) for row in map(json.loads, lines)]
        return profiles, [(text, label if label in names else "") for text, label in rows]

    def _spread(self, rows: list[Row]) -> list[Row]:
        step = max(1, len(rows) // self._most) if self._most else 1
        return rows[::step][: self._most or None]


def _found(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        sys.exit(f"{folder / name} is missing: {__doc__}")
    return folder / name


def profiles_of(rows: Iterable[Row], count: int = 0) -> list[AdapterProfile]:
    """One adapter a label, with its first `count` examples (0: all)."""
    examples: dict[str, list[str]] = {}
    for text, label in rows:
        examples.setdefault(label, []).append(text)
    return [
        AdapterProfile(name=label, version="1", domain=label, examples=tuple(texts[: count or None]))
        for label, texts in sorted(examples.items())
    ]


# -- sections


def intents(data: Data) -> Iterator[Case]:
    """Each intent an adapter, with the published 5 and 10 examples."""
    for name in INTENTS:
        for count in (5, 10):
            profiles = profiles_of(data.rows(name, f"train_{count}"))
            strange = data.strangers() if name == "CLINC150" else []
            yield Case(f"{name}, {count} examples", profiles, [*data.asked(name), *strange], unseen=name)


def _domain_rows(data: Data, part: str) -> list[Row]:
    domains = data.domains()
    return [(text, domains[intent]) for text, intent in data.rows("CLINC150", part)]


def _domains(data: Data, count: int) -> list[AdapterProfile]:
    """The ten domains; their examples come from all of their intents in turn."""
    by_intent: dict[str, list[str]] = {}
    for text, intent in data.rows("CLINC150", "train_5"):
        by_intent.setdefault(intent, []).append(text)
    domains = data.domains()
    rows = [
        (text, domains[i])
        for turn in zip(*by_intent.values(), strict=True)
        for i, text in zip(by_intent, turn, strict=True)
    ]
    return profiles_of(rows, count)


def domains(data: Data) -> Iterator[Case]:
    """CLINC150's ten domains as adapters, with 8 and 25 examples."""
    rows = [*data._spread(_domain_rows(data, data.part)), *data.strangers()]
    for count in (8, 25):
        yield Case(f"ten domains, {count} examples", _domains(data, count), rows)


def descriptions(data: Data) -> Iterator[Case]:
    """Adapters with a description and keywords, without examples."""
    profiles, rows = data.described()
    yield Case("30 adapters by description", profiles, rows, unseen="")


def together(data: Data) -> Iterator[Case]:
    """The intents of all three sets at once, 10 examples each, with the encoder that has seen their train
    parts."""
    profiles = [
        replace(one, name=f"{name.lower()}-{one.name}", domain=f"{name.lower()}-{one.name}")
        for name in INTENTS
        for one in profiles_of(data.rows(name, "train_10"))
    ]
    rows = [(text, f"{name.lower()}-{label}") for name in INTENTS for text, label in data.asked(name)]
    yield Case("291 intents, 10 examples (seen)", profiles, [*rows, *data.strangers()], unseen="")


def shipped(data: Data) -> Iterator[Case]:
    """The shipped adapters, asked what is for none of them."""
    seven = read_profiles([ROOT / "adapters"])
    yield Case("shipped, CLINC150's strangers", seven, data.strangers())
    yield Case(
        "shipped, HWU64's requests", seven, [(text, "") for text, _ in data.asked("HWU64")], unseen="HWU64"
    )


def newcomers(data: Data) -> Iterator[Case]:
    """The ten domains beside the shipped adapters."""
    profiles = [*read_profiles([ROOT / "adapters"]), *_domains(data, 8)]
    rows = [*data._spread(_domain_rows(data, data.part)), *data.strangers()]
    yield Case("ten domains beside the shipped, 8 examples", profiles, rows)


def verbatim(data: Data) -> Iterator[Case]:
    """An adapter's own examples as requests, alone and beside the shipped adapters."""
    seven, own = read_profiles([ROOT / "adapters"]), _domains(data, 25)
    rows = [(text, one.name) for one in own for text in one.examples]
    yield Case("own examples, ten domains", own, rows)
    yield Case("own examples, beside the shipped", [*seven, *own], rows)


SECTIONS = {
    section.__name__: section
    for section in (intents, domains, descriptions, together, shipped, newcomers, verbatim)
}


# -- one case


async def measured(case: Case, rule: RuleInForce) -> dict[str, Any]:
    """Route the rows of a case, one after the other."""
    host = PluginHost([ROOT / "plugins"])
    async with started_router(FixedCatalog(case.profiles), host, rule) as router:
        for text, _ in case.rows[:WARM]:
            await router.route(asking(text))
        began, decisions = time.process_time(), []
        for text, _ in case.rows:
            decisions.append(await router.route(asking(text)))
        spent = time.process_time() - began
    chosen = [decision.adapter.name if decision.adapter else "" for decision in decisions]
    guesses = [rule.now.leaning(decision.votes, rule.now.kinds).guess for decision in decisions]
    known = [i for i, (_, label) in enumerate(case.rows) if label]
    strange = [i for i, (_, label) in enumerate(case.rows) if not label]
    right = sum(chosen[i] == case.rows[i][1] for i in known)
    routed = sum(bool(chosen[i]) for i in known)
    forced = sum((chosen[i] or guesses[i]) == case.rows[i][1] for i in known)
    return {
        "case": case.name,
        "forced right": _share(forced, len(known)),
        "right": _share(right, len(known)),
        "routed": _share(routed, len(known)),
        "wrong of routed": _share(routed - right, routed),
        "strangers routed": _share(sum(bool(chosen[i]) for i in strange), len(strange)),
        "processor ms": f"{1e3 * spent / len(case.rows):.1f}",
        "requests": len(case.rows),
    }


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else ""


def run(section: str, data: Data, encoders: Path | None) -> list[dict[str, Any]]:
    """All cases of a section."""
    shipped, found = encoder.LORA, []
    for case in SECTIONS[section](data):
        encoder.LORA = encoders / case.unseen if encoders is not None and case.unseen else shipped
        encoder.sentence_reader.cache_clear()
        found.append(asyncio.run(measured(case, RuleInForce(Rule()))))
        print(found[-1], file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure the sections and write benchmarks/results/public-routing.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoders", type=Path, help="without it the shipped one, which has seen the sets")
    parser.add_argument("--section", nargs="*", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--test", action="store_true", help="read the test rows")
    parser.add_argument("--rows", type=int, default=0, help="requests of each set at most (0: all)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    part = "test" if options.test else "valid"
    if options.one:
        print(json.dumps(run(options.section[0], Data(options.folder, part, options.rows), options.encoders)))
        return
    rows: list[Mapping[str, Any]] = []
    for section in options.section:
        command = [
            sys.executable,
            "-m",
            "benchmarks.public_routing",
            *sys.argv[1:],
            "--section",
            section,
            "--one",
        ]
        environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
        made = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment
        )
        rows += json.loads(made.stdout.splitlines()[-1])
    notes = [
        f"{part} rows" + (f", {options.rows} of each set at most." if options.rows else ", all of them."),
        "forced right: of the requests for an adapter; the best guess counts where none was routed to.",
        "right, routed: of the requests for an adapter. wrong of routed: of those that were routed.",
        "processor ms: of the whole process, a request; the classifiers have learned before.",
        "Encoders: " + ("each set by one that has not seen it." if options.encoders else "the shipped one."),
    ]
    print(write("public-routing", "Requests of public data sets, routed with the defaults.", rows, notes))


if __name__ == "__main__":
    main()
