"""The page of `benchmarks.speculation`: the newest measurement of each section, and the goals."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.sections import Sections, abouts, tables
from benchmarks.speculation_peers import OFF

ADAPTERS = ("qa", "code", "summarization", "translation", "legal", "financial", "medical")
COPYING = ("qa", "code")
OURS = "ours"
GOALS = {"alone": 1.5, "copying": 2.0, "4": 1.1, "16": 0.98}
FASTER, BEHIND = "times as fast", "behind the first token"
Rows = list[dict[str, Any]]
Facts = Mapping[str, Any]


def text(sections: Sections) -> str:
    """The whole page."""
    done = {name: one for name, one in sections.items() if not one.skipped}
    facts = {name: one.facts for name, one in done.items()}
    ours = facts.get(OURS, {})
    peers = {name: found for name, found in facts.items() if name != OURS}
    lines = [
        "# speculation",
        "",
        "Command: `python -m benchmarks.speculation`. "
        + "; ".join(
            f"{name}: {one['requests']} {one['split']} prompts of each adapter" for name, one in facts.items()
        )
        + ". Greedy, with the limits of the adapters' manifests; prompts are in the prefix cache. This "
        "engine keeps to the manifests' constraints, too, and gives the same tokens with and without "
        "speculation. *Free*: without a constraint, so that every token is sampled; so are the answers of "
        "peers. *With a prompt that is not cached* adds the time to read it to both.",
        "",
        *(f"- {note}" for note in (notes(ours["alone"], ours["several"]) if ours else ())),
    ]
    lines += tables(
        (
            ("This engine, one request alone", ours.get("alone", [])),
            ("This engine, several at once, all adapters mixed", ours.get("several", [])),
            ("Peers: times as fast as without speculation", ratio_rows(ours, peers, FASTER)),
            ("Peers: the same behind the first token", ratio_rows(ours, peers, BEHIND)),
            ("Peers: an answer, mean of the adapters", way_rows(peers)),
            ("Contestants", [row for one in done.values() for row in one.contestants]),
        )
    )
    return "\n".join([*lines, *abouts(sections), ""])


def notes(single: Rows, several: Rows) -> list[str]:
    """The goals, and whether they are reached."""

    def goal(what: str, value: float, wanted: float) -> str:
        return f"{what}: {value:.2f} (goal {wanted}{'' if value >= wanted else ', missed'})"

    by_name = {row["adapter"]: row for row in single}
    told = []
    for column in (FASTER, BEHIND):
        average = mean(by_name[name][column] for name in ADAPTERS)
        told.append(goal(f"one request alone, average of the adapters, {column}", average, GOALS["alone"]))
        for name in COPYING:
            told += [
                goal(f"{kind}, {column}", by_name[kind][column], GOALS["copying"])
                for kind in (name, f"{name}, free")
            ]
    return told + [goal(f"{r['at once']} at once", r[FASTER], GOALS[str(r["at once"])]) for r in several]


def ratio_rows(ours: Facts, peers: Mapping[str, Facts], column: str) -> Rows:
    """How much faster with speculation, by adapter: a column a contestant. This engine's answers are free."""
    if not peers:
        return []
    ways = [(name, way) for name, found in peers.items() for way in found["ways"] if way != OFF]
    free = {row["adapter"]: row[column] for row in ours.get("free", ())}
    rows: Rows = []
    for adapter in ADAPTERS:
        row: dict[str, Any] = {"adapter": adapter}
        if adapter in free:
            row["this engine"] = free[adapter]
        for name, way in ways:
            measure = {FASTER: "ms", BEHIND: "behind"}[column]
            without, with_it = (peers[name]["ways"][each][adapter][measure] for each in (OFF, way))
            row[f"{name}, {way}"] = without / max(1e-9, with_it)
        rows.append(row)
    average = {name: mean(row[name] for row in rows) for name in rows[0] if name != "adapter"}
    return [*rows, {"adapter": "average"} | average]


def way_rows(peers: Mapping[str, Facts]) -> Rows:
    """What an answer takes on average of the adapters, by contestant."""
    return [
        {
            "contestant": f"{name}, {way}",
            "tokens": mean(row["tokens"] for row in rows.values()),
            "ms": mean(row["ms"] for row in rows.values()),
            "ms behind the first token": mean(row["behind"] for row in rows.values()),
            "share of answers as without": mean(row["same"] for row in rows.values()),
        }
        for name, found in peers.items()
        for way, rows in found["ways"].items()
    ]
