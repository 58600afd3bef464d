"""`python -m benchmarks.routing_unseen`: how well requests are routed for adapters that nobody tuned, and how
well conversations, hard requests and requests in other languages are routed.

Each deployment of recipes/routing has eight adapters with 8 examples each (25 with the further ones), 150
requests for them and 60 for none. Settings are the defaults; there is no calibration. The deployment of the
software vendor is unseen: do not tune by it. It is asked with --unseen only, as is the unseen half of the
chats and of the system prompts. Those are routed with the shipped adapters and their calibration. The base
is loaded for the classifier that reads it. It takes about ten minutes on two cores, `--only chats` one.
Hard requests of the unseen half are asked with --unseen only, too. Requests in other languages are read with
multilingual-e5-small where it was fetched (`lora-router models fetch`).
With --calibrated each deployment is calibrated first, as by `lora-router route calibrate labelled.jsonl
--accept`, with its 20 labelled requests an adapter and the built-in strange requests; that takes about six
minutes for each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import write
from router.calibration.file import read_calibration
from router.classifiers.contract import Registration
from router.classifiers.texts import is_foreign
from router.cli.plugins import load_plugins
from router.cli.settings import load_settings, rule_of
from router.config import Settings
from router.extensions.calibration.commands.calibrate import calibrate
from router.extensions.calibration.commands.local import (
    FittedClassifiers,
    ask_batch,
    fit_classifiers,
    open_local,
    read_profiles,
    resident_base,
)
from router.routing import BaseModel
from router.routing.chain import FitProfiles, Labels, languages_of_examples
from router.routing.conversations import Classification, TurnDecision, choose, routing_input
from router.routing.in_force import RuleInForce
from router.routing.policy import FITTED, Leaning, PlainRule
from router.types import AdapterProfile, Continuity, Request, Turn, Vote

ROOT = Path(__file__).parents[1]
ROUTING = ROOT / "recipes" / "routing"
BUILDING, UNSEEN = ("company", "hospital"), ("software_vendor",)
BATCH = 32
READ = ("middle-instruction", "answer-form")  # kinds of hard requests
NOTES = [
    "right: share of the requests for the eight adapters that reach the right one. The others go to the base "
    "or to another adapter (wrong of routed).",
    "The requests were written by a language model; recipes/routing/README.md says how.",
]
CHAT_NOTES = [
    "Lines `middle-instruction` and `answer-form` are single turns of `hard.jsonl`; the others of the chats.",
    "Later turns are those after the first. With continuity `none` each turn is routed by itself.",
    "to the base: turns for an adapter that the base gets. wrong: turns that an adapter gets that is not "
    "the right one.",
    "The halves have the same author, a language model; recipes/routing/README.md says how.",
]


HARD_NOTES = [
    "The shipped adapters, calibrated. ok: requests for an adapter that it gets, and for none that the base "
    "gets. to the base: requests for an adapter that the base gets. wrong: requests that an adapter gets "
    "that is not the right one.",
    "The requests were written by a language model; recipes/routing/README.md says how.",
]
FOREIGN_NOTES = [
    "The examples are English. shipped: calibrated; company, hospital: no calibration, 8 examples each.",
    "Strangers are requests for none of the adapters of all three, in the same language.",
    "The requests were written by a language model and are for building: nothing of this is unseen.",
]


def lines(path: Path) -> list[tuple[str, str]]:
    """Text and adapter ('' for none) of each request of a file of JSON lines."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(row["text"], row.get("adapter", "")) for row in rows]


def profiles_of(folder: Path, more: bool) -> tuple[AdapterProfile, ...]:
    """The deployment's adapters, with all their examples where `more`."""
    profiles = read_profiles([folder / "adapters"])
    if not more:
        return profiles
    further = lines(folder / "more_examples.jsonl")
    return tuple(
        replace(p, examples=(*p.examples, *(text for text, name in further if name == p.name)))
        for p in profiles
    )


def votes_of(
    registrations: Sequence[Registration], texts: Sequence[str], labels: Labels, known: Collection[str]
) -> Iterator[tuple[Vote, ...]]:
    """Of every classifier on each text, in the order in which they are asked. `known` are the languages of
    the examples: classifiers for other languages decline texts in those."""

    def column(one: Registration) -> list[Vote]:
        asked = [t for t in texts if not one.classifier.foreign or is_foreign(t, known)]
        parts = (asked[i : i + BATCH] for i in range(0, len(asked), BATCH))
        votes = {
            text: vote
            for part in parts
            for text, vote in zip(part, ask_batch(one, part, labels), strict=True)
        }
        return [votes.get(text, Vote(one.name, declined=True)) for text in texts]

    return zip(*map(column, registrations), strict=True)


def measured(name: str, more: bool, base: BaseModel) -> dict[str, Any]:
    """One line of the table."""
    profiles = profiles_of(ROUTING / name, more)
    fitted = fit_classifiers(
        load_plugins([ROOT / "plugins"]).registrations(), FitProfiles(profiles, profiles), base
    )
    found = asked_of(rule_of(load_settings({"calibration": ""})), fitted, profiles, name)
    return {**whose(name, profiles), **found}


def calibrated(name: str) -> dict[str, Any]:
    """One line of the table of calibrated deployments. The command and the rule are those of users."""
    profiles = profiles_of(ROUTING / name, more=False)
    with TemporaryDirectory() as folder:
        rows = lines(ROUTING / name / "labelled.jsonl")
        labelled, path = Path(folder, "labelled.jsonl"), Path(folder, "calibration.json")
        labelled.write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in rows))
        adapters = [ROUTING / name / "adapters"]
        how = {"output": path, "adapters_dir": adapters, "plugins_dir": [ROOT / "plugins"]}
        calibrate([labelled], accept=True, **how)
        of = read_calibration(path)
        with open_local(adapters, [ROOT / "plugins"], calibration=str(path)) as local:
            rule = RuleInForce(PlainRule(), of, base=local.settings.model)
            found = asked_of(rule, local.fitted, profiles, name)
        assert rule.status == FITTED, rule.status
    proven = of.report.get("method", "proof")
    supported = {"threshold": of.threshold, "target supported": of.target, "by": proven}
    return {
        **whose(name, profiles),
        "labelled each": len(rows) // len(profiles),
        **supported,
        **found,
    }


def whose(name: str, profiles: Sequence[AdapterProfile]) -> dict[str, Any]:
    """The first columns of a line."""
    half = "unseen" if name in UNSEEN else "building"
    return {"deployment": name, "half": half, "examples each": len(profiles[0].examples)}


def asked_of(
    in_force: RuleInForce, fitted: FittedClassifiers, profiles: Sequence[AdapterProfile], name: str
) -> dict[str, Any]:
    """What becomes of the deployment's test requests, and of those for none."""
    in_force.classifiers_are(fitted.registrations)
    in_force.adapters_are(profiles)
    rows = lines(ROUTING / name / "test.jsonl") + lines(ROUTING / name / "none.jsonl")
    known = languages_of_examples(profiles)
    votes = votes_of(fitted.registrations, [text for text, _ in rows], Labels(profiles), known)
    names = {profile.name for profile in profiles}
    chosen = [in_force.now.conclude(ballot, names).adapter for ballot in votes]
    known = [(label, adapter) for (_, label), adapter in zip(rows, chosen, strict=True) if label]
    strange = [adapter for (_, label), adapter in zip(rows, chosen, strict=True) if not label]
    right = sum(label == adapter for label, adapter in known)
    routed = sum(bool(adapter) for _, adapter in known)
    return {
        "requests": len(known),
        "right": right / len(known),
        "wrong of routed": (routed - right) / routed if routed else 0.0,
        "strangers routed": f"{sum(map(bool, strange))} of {len(strange)}",
    }


class Deciding:
    """Decides on requests as a server with the shipped adapters and their calibration does."""

    def __init__(self, settings: Settings, base: BaseModel) -> None:
        rule = rule_of(settings)
        self._profiles = read_profiles(settings.adapter_folders)
        taught = FitProfiles(self._profiles, rule.taught(self._profiles))
        self._fitted = fit_classifiers(load_plugins([ROOT / "plugins"]).registrations(), taught, base)
        rule.classifiers_are(self._fitted.registrations)
        rule.adapters_are(self._profiles)
        self.rule, self._labels = rule.now, Labels(self._profiles)
        self.names = {profile.name for profile in self._profiles}
        self._known = languages_of_examples(self._profiles)
        self._found: dict[str, Classification] = {}

    def votes(self, texts: Sequence[str]) -> list[tuple[Vote, ...]]:
        """Of all classifiers on each text."""
        return list(votes_of(self._fitted.registrations, texts, self._labels, self._known))

    async def _ask(self, text: str, again: bool = False) -> Classification:
        if text not in self._found:
            (votes,) = self.votes([text])
            conclusion = self.rule.conclude(votes, self.names)
            leaning = Leaning() if conclusion.adapter else self.rule.leaning(votes, self.names)
            self._found[text] = Classification(conclusion, leaning, votes)
        return self._found[text]

    def __call__(self, turns: Sequence[Turn], mode: Continuity) -> TurnDecision:
        """Where the last of these turns goes."""
        return asyncio.run(choose(routing_input(Request("r", turns=tuple(turns))), self._ask, mode))


def half_of(name: str, half: str) -> list[dict[str, Any]]:
    """The rows of a file of recipes/routing that belong to a half."""
    rows = map(json.loads, (ROUTING / name).read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["half"] == half]


def conversations(decide: Deciding, half: str, mode: Continuity) -> list[dict[str, Any]]:
    """A line for later turns of each kind of chat, one for first turns, one for system prompts, and one for
    each kind of hard request that differs by what is read of it."""
    went: dict[str, list[tuple[str, str]]] = {}
    for row in half_of("chats.jsonl", half):
        turns = [Turn(said["role"], said["content"]) for said in row["messages"]]
        ends = [i for i, turn in enumerate(turns) if turn.role == "user"]
        for i, (end, expected) in enumerate(zip(ends, row["expected"], strict=True)):
            kind = row["kind"] if i else "first turn"
            went.setdefault(kind, []).append((expected, decide(turns[: end + 1], mode).conclusion.adapter))
    for row in half_of("system_prompts.jsonl", half):
        turns = [Turn(said["role"], said["content"]) for said in row["messages"]]
        chosen = decide(turns, mode)
        went.setdefault("system prompt", []).append((row["adapter"], chosen.conclusion.adapter))
    for row in half_of("hard.jsonl", half):
        if row["kind"] in READ:
            chosen = decide([Turn("user", row["text"])], mode)
            went.setdefault(row["kind"], []).append((row["adapter"], chosen.conclusion.adapter))
    return [
        {
            "half": half,
            "continuity": mode,
            "turns": kind,
            "asked": len(found),
            "right": sum(expected == adapter for expected, adapter in found) / len(found),
            "to the base": sum(bool(expected) and not adapter for expected, adapter in found) / len(found),
            "wrong": sum(bool(adapter) and expected != adapter for expected, adapter in found) / len(found),
        }
        for kind, found in went.items()
    ]


def hard(decide: Deciding, half: str) -> list[dict[str, Any]]:
    """A line for each kind of hard request, and one for all."""
    went: dict[str, list[tuple[str, str]]] = {}
    for row in half_of("hard.jsonl", half):
        chosen = decide([Turn("user", row["text"])], "none").conclusion.adapter
        for kind in (row["kind"], "all"):
            went.setdefault(kind, []).append((row["adapter"], chosen))
    return [{"half": half, "kind": kind, **counted(found)} for kind, found in sorted(went.items())]


def counted(found: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Of pairs of the right adapter and the one that got the request."""
    return {
        "requests": len(found),
        "ok": sum(right == adapter for right, adapter in found),
        "to the base": sum(bool(right) and not adapter for right, adapter in found),
        "wrong": sum(bool(adapter) and right != adapter for right, adapter in found),
    }


def foreign(base: BaseModel, decide: Deciding) -> list[dict[str, Any]]:
    """A line for each deployment and language of foreign.jsonl."""
    rows = half_of("foreign.jsonl", "build")
    deciding: dict[str, Callable[[str], str]] = {name: deciding_untuned(name, base) for name in BUILDING} | {
        "shipped": lambda text: decide([Turn("user", text)], "none").conclusion.adapter
    }
    table = []
    for name, ask in deciding.items():
        for language in dict.fromkeys(row["language"] for row in rows):
            mine = [row for row in rows if row["language"] == language and row["deployment"] in (name, "")]
            found = [(row["adapter"], ask(row["text"])) for row in mine]
            known = counted([pair for pair in found if pair[0]])
            strange = [adapter for right, adapter in found if not right]
            routed = f"{sum(map(bool, strange))} of {len(strange)}"
            table.append({"deployment": name, "language": language, **known, "strangers routed": routed})
    return table


def deciding_untuned(name: str, base: BaseModel) -> Callable[[str], str]:
    """Where a deployment without a calibration sends a text."""
    profiles = profiles_of(ROUTING / name, more=False)
    fitted = fit_classifiers(
        load_plugins([ROOT / "plugins"]).registrations(), FitProfiles(profiles, profiles), base
    )
    rule, labels, known = RuleInForce(PlainRule()), Labels(profiles), languages_of_examples(profiles)
    rule.classifiers_are(fitted.registrations)
    rule.adapters_are(profiles)
    names = {profile.name for profile in profiles}

    def ask(text: str) -> str:
        (votes,) = votes_of(fitted.registrations, [text], labels, known)
        return rule.now.conclude(votes, names).adapter

    return ask


def main() -> None:
    """Print the tables and write them to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unseen", action="store_true", help="ask the unseen deployment and halves, too")
    parser.add_argument("--only", choices=("deployments", "chats", "hard"), help="one part of the tables")
    parser.add_argument("--calibrated", action="store_true", help="the table of calibrated deployments")
    asked = parser.parse_args()
    names = BUILDING + (UNSEEN if asked.unseen else ())
    if asked.calibrated:
        rows = [calibrated(name) for name in names]
        print(write("routing-calibrated", "After `route calibrate --accept`.", rows, NOTES))
        return
    settings = load_settings({"adapters_dir": (ROOT / "adapters",)})
    with resident_base(settings) as base:
        if asked.only in (None, "deployments"):
            rows = [measured(name, more, base) for name in names for more in (False, True)]
            print(write("routing-unseen", "Default settings, no calibration.", rows, NOTES))
        if asked.only == "deployments":
            return
        decide = Deciding(settings, base)
        halves = ("build", "unseen") if asked.unseen else ("build",)
        if asked.only in (None, "hard"):
            rows = [row for half in halves for row in hard(decide, half)]
            print(write("routing-hard", "Hard requests to the shipped adapters.", rows, HARD_NOTES))
            rows = foreign(base, decide)
            print(write("routing-foreign", "Requests in other languages.", rows, FOREIGN_NOTES))
        if asked.only in (None, "chats"):
            modes: tuple[Continuity, ...] = ("adaptive", "none")
            rows = [row for half in halves for mode in modes for row in conversations(decide, half, mode)]
            print(write("routing-conversations", "The shipped adapters, calibrated.", rows, CHAT_NOTES))


if __name__ == "__main__":
    main()
