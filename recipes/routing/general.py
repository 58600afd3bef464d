"""`python recipes/routing/general.py WORK`: fit router/routing/weights.json, by which votes are pooled where
there is no calibration.

The deployments of `learning/` that scorer.py did not learn from (encoder.HELD_BACK) are each routed with
their ten examples an adapter, and with the LoRA in WORK that did not learn from them; then a scaler for each
classifier and the weights of each stage are fitted over all of them, as `route calibrate` fits them for one,
but with nothing that belongs to a single adapter. An adapter of the fit stands for any adapter. The
deployments company and hospital show how well it holds.

Prints for each threshold how many requests of the deployments are right, how many of the routed are wrong and
how many strange ones are routed, each deployment judged by weights that were fitted on the others. It takes
about twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from encoder import HELD_BACK, fold_of, learning  # noqa: E402
from scorer import reader_of  # noqa: E402

from benchmarks.routing_unseen import lines, profiles_of, votes_of  # noqa: E402
from router.calibration.file import write_calibration  # noqa: E402
from router.calibration.model import Axes, Axis, Binding, Calibration  # noqa: E402
from router.calibration.targets import Goal  # noqa: E402
from router.classifiers.contract import Registration  # noqa: E402
from router.cli.plugins import load_plugins  # noqa: E402
from router.cli.settings import load_settings  # noqa: E402
from router.extensions.calibration.cascade import Run, join_runs, run_cascade  # noqa: E402
from router.extensions.calibration.commands.local import fit_classifiers, resident_base  # noqa: E402
from router.extensions.calibration.fit import fit_stops  # noqa: E402
from router.extensions.calibration.rows import Ballot, DataRow  # noqa: E402
from router.extensions.calibration.stages import fit_scaler, fit_stage  # noqa: E402
from router.models.encoder import Reader, sentence_reader  # noqa: E402
from router.routing import BaseModel  # noqa: E402
from router.routing.chain import FitProfiles, Labels  # noqa: E402
from router.routing.policy import WEIGHTS  # noqa: E402
from router.types import AdapterProfile, Vote  # noqa: E402

CLASSIFIERS = ("linear", "embedding", "probe")  # in the order in which they are asked
BUILDING = ("company", "hospital")
GOAL = Goal(target=0.06)
THRESHOLD, NOVELTY_LIMIT = 0.66, 0.4  # in force; chosen from what this prints
THRESHOLDS = (0.4, 0.5, 0.55, 0.6, 0.64, 0.66, 0.68, 0.7, 0.75, 0.8)


@dataclass(frozen=True, slots=True)
class Question:
    """A deployment's requests with their votes; adapters are named by their place, as "0", "1", ..."""

    name: str
    kinds: dict[str, Axis]
    ballots: tuple[Ballot, ...]


def learning_profiles(name: str) -> tuple[tuple[AdapterProfile, ...], list[tuple[str, str]]]:
    """Adapters, and requests with their adapter or ""."""
    text = (HERE / "learning" / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    examples = [(row["adapter"], row["text"]) for row in rows if row["part"] == "example"]
    profiles = tuple(
        AdapterProfile(
            row["adapter"],
            "1.0.0",
            description=row["description"],
            examples=tuple(text for one, text in examples if one == row["adapter"]),
        )
        for row in rows
        if row["part"] == "adapter"
    )
    wanted = [row for row in rows if row["part"] in ("request", "none")]
    return profiles, [(row["text"], row.get("adapter", "")) for row in wanted]


def building_profiles(name: str, more: bool) -> tuple[tuple[AdapterProfile, ...], list[tuple[str, str]]]:
    """The same of a deployment of recipes/routing."""
    folder = HERE / name
    return profiles_of(folder, more), lines(folder / "test.jsonl") + lines(folder / "none.jsonl")


def carried() -> list[Registration]:
    """Of the classifiers that are weighed."""
    return [one for one in load_plugins([ROOT / "plugins"]).registrations() if one.name in CLASSIFIERS]


def reading_with(registrations: Sequence[Registration], reader: Reader) -> list[Registration]:
    """The same with an embedding of that encoder."""
    made: list[Registration] = []
    for one in registrations:
        kind: type[Any] = type(one.classifier)
        made.append(replace(one, classifier=kind(reader)) if one.name == "embedding" else one)
    return made


def asked_of(
    name: str,
    profiles: Sequence[AdapterProfile],
    rows: Sequence[tuple[str, str]],
    registrations: Sequence[Registration],
    base: BaseModel,
) -> Question:
    """Votes of these classifiers, which learned these adapters."""
    fitted = fit_classifiers(registrations, FitProfiles(tuple(profiles), tuple(profiles)), base)
    votes = votes_of(fitted.registrations, [text for text, _ in rows], Labels(tuple(profiles)), {"en"})
    places = {profile.name: str(i) for i, profile in enumerate(profiles)}
    ballots = []
    for (text, label), found in zip(rows, votes, strict=True):
        moved = tuple(
            replace(vote, scores={places[n]: c for n, c in vote.scores.items()}, evidence="")
            for vote in found
        )
        ballots.append(Ballot(DataRow(text, places.get(label, "")), moved))
    return Question(name, dict.fromkeys(places.values(), Axis.PLAIN), tuple(ballots))


def fitted(deployments: Sequence[Question]) -> Calibration:
    """Scalers and stages over all of them; the stops are left at never."""
    ballots = [ballot for one in deployments for ballot in one.ballots]
    kinds = deployments[0].kinds
    share = np.full(len(ballots), 1 / len(ballots))
    scalers = {n: fit_scaler(ballots, i, tuple(kinds), share) for i, n in enumerate(CLASSIFIERS)}
    stages = tuple(
        fit_stage(ballots, scalers, CLASSIFIERS[: i + 1], kinds, share, own=False)
        for i in range(len(CLASSIFIERS))
    )
    return Calibration(
        scalers=scalers,
        stages=stages,
        threshold=THRESHOLD,
        novelty_limit=NOVELTY_LIMIT,
        target=GOAL.target,
        delta=GOAL.delta,
        ood_target=GOAL.ood_target,
        axes=Axes(),
        binding=Binding({}, dict.fromkeys(CLASSIFIERS, "")),
        report={"fitted_on": [one.name for one in deployments], "requests": len(ballots)},
    )


def run_of(weights: Calibration, one: Question) -> Run:
    """Every stage on every request."""
    return run_cascade(one.ballots, weights.stages, weights.scalers, weights.axes, one.kinds)


def table(weights: Calibration, deployments: Sequence[Question], runs: Sequence[Run]) -> None:
    """Print right, wrong and strange for each threshold, with the stops of the weights."""
    for limit in (1.0, 0.7, 0.5, 0.4):
        for threshold in THRESHOLDS:
            said = []
            for one, run in zip(deployments, runs, strict=True):
                known = np.array([bool(ballot.row.label) for ballot in one.ballots])
                needed = [max(threshold, stage.stop) for stage in weights.stages[:-1]] + [threshold]
                sure = (run.confidence >= np.array(needed)) & (run.novelty <= limit)
                routed, first = sure.any(axis=1), sure.argmax(axis=1)
                right = run.right[np.arange(len(first)), first] & routed
                asked = routed & known
                said.append(
                    f"{one.name[:9]} {right[known].mean():.2f} "
                    f"{1 - right[asked].sum() / max(1, asked.sum()):.3f} {int((routed & ~known).sum())}"
                )
            print(f"novelty {limit} threshold {threshold}: " + " | ".join(said))


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder with the LoRA of each training of the encoder")
    parser.add_argument("--votes", type=Path, help="keep votes in this folder")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    asked = parser.parse_args()
    jobs = [(name, *learning_profiles(name)) for name in HELD_BACK]
    jobs += [
        (f"{name} {'25' if more else '8'}", *building_profiles(name, more))
        for name in BUILDING
        for more in (False, True)
    ]
    places = {one.name: i for i, one in enumerate(learning())}
    deployments, classifiers = list[Question](), carried()
    with resident_base(load_settings({})) as base:
        for name, profiles, rows in jobs:
            kept = asked.votes / f"{name}.json" if asked.votes else None
            if kept is not None and kept.is_file():
                deployments.append(read_votes(kept))
            else:
                held = name in HELD_BACK
                reader = reader_of(asked.work, fold_of(places[name])) if held else sentence_reader()
                asking = reading_with(classifiers, reader)
                deployments.append(asked_of(name, profiles, rows, asking, base))
                if kept is not None:
                    write_votes(kept, deployments[-1])
            print(f"{name}: {len(rows)} requests", flush=True)
    fitting, checking = deployments[: len(HELD_BACK)], deployments[len(HELD_BACK) :]
    apart = [run_of(fitted([o for o in fitting if o is not one]), one) for one in fitting]
    runs = join_runs(apart, range(sum(len(one.ballots) for one in fitting)))
    weights = fitted(fitting)
    stops = fit_stops(runs, GOAL)
    stages = tuple(replace(stage, stop=stop) for stage, stop in zip(weights.stages, stops, strict=True))
    weights = replace(weights, stages=stages)
    print({name: stage.stop for name, stage in zip(CLASSIFIERS, stages, strict=True)})
    table(weights, fitting, apart)
    table(weights, checking, [run_of(weights, one) for one in checking])
    write_calibration(asked.output, weights)


def write_votes(path: Path, one: Question) -> None:
    """For `read_votes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        [b.row.text, b.row.label, [[v.classifier, dict(v.scores), v.declined] for v in b.votes]]
        for b in one.ballots
    ]
    path.write_text(json.dumps([one.name, list(one.kinds), rows]))


def read_votes(path: Path) -> Question:
    """What `write_votes` wrote."""
    name, kinds, rows = json.loads(path.read_text())
    ballots = tuple(
        Ballot(
            DataRow(text, label),
            tuple(Vote(n, scores, declined=declined) for n, scores, declined in votes),
        )
        for text, label, votes in rows
    )
    return Question(name, dict.fromkeys(kinds, Axis.PLAIN), ballots)


if __name__ == "__main__":
    main()
