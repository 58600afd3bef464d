"""`python -m benchmarks.improve`: the loop from feedback to a better version that serves, on the real base.

`medical` is wrong about diagnoses in clinical shorthand ("unsp fx l shldr") in nearly half of all cases.
Synthetic users ask a server about such notes and correct its wrong answers. `lora-router adapters improve
medical` then makes a version of that; fresh notes, of which the command never saw any, say what it is worth.
Other users decide a canary.

The sections:

loop        300 corrections: gain on fresh notes, loss on test rows, canary, and what serves at the end
random      corrections that are drawn at random, 20 times: each must end in "no better"
poison      one correction in ten is hostile, from two units: what they get

`python -m benchmarks.improve_rule` has the rule alone, without a model.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report
from router.client import Client, Outcome
from router.extensions.improve.state import Result
from tests.serving import serving

ROOT = Path(__file__).parents[1]
DATA = ROOT / "recipes" / "data"
ASKED_ROWS = 700  # of the notes: users ask about these
FEEDBACK_ROWS = 1900  # the terms of notes from ASKED_ROWS to here, as they are printed, are rows of the task
NEVER = "Symptoms, signs and abnormal clinical and laboratory findings, not elsewhere classified"
WINDOW = 20.0  # seconds in which a user's vote counts: it comes right behind the answer
BY_USER = 5  # notes that a user asks about


def json_lines(name: str) -> list[dict[str, str]]:
    """Rows of a data file."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@dataclass
class Place:
    """A folder with adapters of its own, and a server's state."""

    folder: Path
    said: list[str] = field(default_factory=list)  # what the commands printed

    @property
    def environment(self) -> dict[str, str]:
        """Of servers and commands."""
        state = {"XDG_STATE_HOME": str(self.folder / "state"), "PYTHONPATH": str(ROOT)}
        return state | {"LORA_ROUTER_EXPERIMENTS_LOOK_SECONDS": "2"}

    @contextmanager
    def server(self, *flags: str) -> Iterator[str]:
        """A server of these adapters; gives its address."""
        with serving(self.folder, "--adapters-dir", "adapters", *flags, **self.environment) as (_, address):
            yield address

    def command(self, *words: str, fails: Sequence[int] = ()) -> str:
        """`lora-router WORDS`; what it prints. Raises RuntimeError for an exit code not in `fails`."""
        done = subprocess.run(
            [sys.executable, "-m", "router.cli", *words],
            cwd=self.folder,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and done.returncode not in fails:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
        shown = " ".join(words).replace(f"{self.folder}/", "").replace(f"{ROOT}/", "")
        self.said.append(f"$ lora-router {shown}\n{done.stdout.strip()}")
        return done.stdout

    def improve(self, feedback: Path, *flags: str) -> dict[str, Any]:
        """The command, and its last run."""
        self.command("adapters", "improve", "medical", "--feedback", str(feedback), *flags, fails=(3, 4))
        shown = self.command("adapters", "improve", "medical", "--status", "--json")
        self.said.pop()
        last: dict[str, Any] = json.loads(shown)[-1]
        return last

    def score(self, old: Path, new: Path, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """`compare --offline` on these rows."""
        file = self.folder / "rows.jsonl"
        write(file, rows)
        options = ("--data", str(file), "--metric", "exact_match", "--max-tokens", "48", "--json")
        found: dict[str, Any] = json.loads(self.command("compare", str(old), str(new), "--offline", *options))
        self.said.pop()
        return found


@contextmanager
def new_place() -> Iterator[Place]:
    """With version 1.0.0 alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "adapters" / "medical", folder / "adapters" / "medical")
        write_recipe(folder / "recipes")
        yield Place(folder)


def write_recipe(folder: Path) -> None:
    """The recipe of `medical` with 1,200 more validation rows: its 581 task rows are too few for the rule."""
    folder.mkdir()
    printed = [
        row | {"prompt": row["prompt"].partition('"')[0] + json.dumps(row["x"])}
        for row in json_lines("medical.shorthand")[ASKED_ROWS:FEEDBACK_ROWS]
    ]
    write(folder / "valid.jsonl", [*json_lines("medical.valid"), *printed])
    text = (ROOT / "recipes" / "medical.toml").read_text(encoding="utf-8")
    text = text.replace('"data/medical.valid.jsonl.gz"', '"valid.jsonl"').replace('"data/', f'"{DATA}/')
    (folder / "medical.toml").write_text(text, encoding="utf-8")


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def feedback_of(
    asked: Sequence[tuple[Mapping[str, str], str]],
    corrected: Callable[[int, Mapping[str, str]], tuple[str, str]],
) -> list[dict[str, Any]]:
    """Records of wrong answers; `corrected` gives unit and text of the n-th."""
    records = []
    for number, (row, answer) in enumerate(asked):
        unit, text = corrected(number, row)
        records.append(
            {
                "response_id": f"response-{number}",
                "time": 1_767_225_600.0 + number,
                "tenant": "",
                "unit": unit,
                "adapter": "medical",
                "version": "1.0.0",
                "verdict": "corrected",
                "messages": [["user", row["prompt"]]],
                "answer": answer,
                "corrected": text,
            }
        )
    return records


def wrong_answers(place: Place, count: int) -> list[tuple[dict[str, str], str]]:
    """The first `count` notes that a server answers wrongly, with its answers."""
    found: list[tuple[dict[str, str], str]] = []
    with place.server() as address, Client(address, timeout=60.0) as client:
        for row in json_lines("medical.shorthand")[:ASKED_ROWS]:
            answer = client.generate(row["prompt"], adapter="medical").text.strip()
            if answer != row["response"]:
                found.append((row, answer))
            if len(found) == count:
                break
    return found


def by_user(number: int, row: Mapping[str, str]) -> tuple[str, str]:
    """An honest user corrects some answers in a row."""
    return f"user-{number // BY_USER}", row["response"]


# -- loop


def loop(options: argparse.Namespace) -> bool:
    """From corrections to a version that serves."""
    fresh, test = json_lines("medical.shorthand")[FEEDBACK_ROWS:], json_lines("medical.test")
    with new_place() as place:
        asked = wrong_answers(place, options.rows)
        feedback = write(place.folder / "feedback.jsonl", feedback_of(asked, by_user))
        with place.server() as address:
            flags = ("--server", address, "--window", f"{WINDOW:g}s", "--units", "1000", "--promote")
            run = place.improve(feedback, *flags)
            rows = [{"step": "command", "result": run["result"], "points": run["why"]}]
            if not run["folder"]:
                return finish("improve", rows, {"a canary began": False}, place.said, options)
            old, new = place.folder / "adapters" / "medical", Path(run["folder"])
            gained, kept = place.score(old, new, fresh), place.score(old, new, test)
            rows += [scored("fresh notes", gained), scored("test rows", kept)]
            before = users(address, fresh[:50], "before")
            asked_users = canary(address, run["experiment"], fresh, options.users)
            time.sleep(WINDOW + 1)  # until the last ones had their time
            run = place.improve(feedback, *flags)
            serves = users(address, fresh[:50], "after")
            rows.append({"step": f"canary, {asked_users} users", "result": run["result"], "points": ""})
            rows.append({"step": "serves before and after", "result": f"{before} → {serves}", "points": ""})
    met = {
        "gain on fresh notes ≥ 10 points": gained["difference"]["mean"] >= 0.10,
        "a loss of 2 points on task rows excluded": bool(run["task"]),
        "canary won, and it serves": run["result"] == Result.PROMOTED and serves == "1.1.0",
    }
    return finish("improve", rows, met, place.said, options)


def users(address: str, rows: Sequence[Mapping[str, str]], unit: str) -> str:
    """The version that answers a user who names only the adapter."""
    with Client(address, timeout=60.0) as client:
        answer = client.generate(rows[0]["prompt"], adapter="medical", unit=unit)
        return answer.decision.adapter.version if answer.decision.adapter else "base"


def canary(address: str, experiment: str, fresh: Sequence[Mapping[str, str]], most: int) -> int:
    """Users of `experiment` ask one note each, and say whether the answer was right; how many it took."""
    draw = random.Random(5)
    with Client(address, timeout=60.0) as client:
        for start in range(0, most, 100):
            for user in range(start, start + 100):
                row = draw.choice(fresh)
                answer = client.generate(row["prompt"], adapter="medical", unit=f"canary-{user}")
                right = float(answer.text.strip() == row["response"])
                vote = Outcome("feedback", right, response_id=answer.response_id, key=f"vote-{user}")
                for recorded in client.experiments.record_outcomes([vote]):
                    if recorded.error:
                        raise RuntimeError(recorded.error)
            if client.experiments.report(experiment).verdict.decision != "undecided":
                return start + 100
    return most


# -- random


def randomly(options: argparse.Namespace) -> bool:
    """Corrections that say nothing: the same command must say "no better" each time."""
    labels = sorted({row["response"] for row in json_lines("medical.train")})
    kept = options.keep.read_text().splitlines() if options.keep and options.keep.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in kept]
    done = {row["seed"] for row in rows}
    with new_place() as place:
        asked = wrong_answers(place, options.rows)
    for seed in sorted({*range(options.first, options.first + options.runs)} - done):
        draw = random.Random(seed)

        def drawn(number: int, row: Mapping[str, str], draw: random.Random = draw) -> tuple[str, str]:
            return f"user-{number // BY_USER}", draw.choice(labels)

        with new_place() as place:
            feedback = write(place.folder / "feedback.jsonl", feedback_of(asked, drawn))
            began = time.monotonic()
            run = place.improve(feedback, "--canary", "0")
        rows.append(
            {
                "seed": seed,
                "result": run["result"],
                "why": run["why"],
                "seconds": round(time.monotonic() - began),
            }
        )
        print(rows[-1], flush=True)
        if options.keep:
            with options.keep.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    met = {f"no better in {len(rows)} of {len(rows)}": all(row["result"] == Result.NO_BETTER for row in rows)}
    return finish("improve-random", rows, met, [], options)


# -- poison


def poison(options: argparse.Namespace) -> bool:
    """Two units send a tenth of the corrections, and each says the same wrong chapter."""
    fresh = json_lines("medical.shorthand")[FEEDBACK_ROWS:]
    with new_place() as place:
        asked = wrong_answers(place, options.rows)
        hostile = len(asked) // 10

        def mixed(number: int, row: Mapping[str, str]) -> tuple[str, str]:
            return (f"hostile-{number % 2}", NEVER) if number < hostile else by_user(number, row)

        feedback = write(place.folder / "feedback.jsonl", feedback_of(asked, mixed))
        run = place.improve(feedback, "--canary", "0")
        old, new = place.folder / "adapters" / "medical", place.folder / "runs/improve/medical/1/version"
        aimed = [row | {"response": NEVER} for row in fresh if row["response"] != NEVER]
        gained, got = place.score(old, new, fresh), place.score(old, new, aimed)
        rows = [
            {"step": "command", "result": run["result"], "points": json.dumps(run["left"])},
            scored("fresh notes", gained),
            scored("answers that the hostile ones wanted", got),
        ]
    met = {"the wanted answers rise by less than 2 points": got["difference"]["mean"] < 0.02}
    return finish("improve-poison", rows, met, place.said, options)


# -- pages


def scored(step: str, found: Mapping[str, Any]) -> dict[str, str]:
    """A row of a comparison."""
    return {
        "step": f"{step} ({found['difference']['rows']})",
        "result": f"{100 * found['old_score']:.1f} → {100 * found['new_score']:.1f}",
        "points": share(found),
    }


def share(found: Mapping[str, Any]) -> str:
    """A difference in points, with its interval."""
    gap = found["difference"]
    return f"{100 * gap['mean']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"


def finish(
    name: str,
    rows: list[dict[str, Any]],
    met: Mapping[str, bool],
    said: Sequence[str],
    options: argparse.Namespace,
) -> bool:
    """Print, and write the page unless `--dry`."""
    words = f"python -m benchmarks.improve --section {options.section} --rows {options.rows}"
    notes = [f"{what}: {'met' if holds else 'MISSED'}" for what, holds in met.items()]
    print(report.table(rows), *notes, *said, sep="\n")
    if not options.dry:
        workload = f"{str(__doc__).split(chr(10) * 2)[1]} {SECTIONS[options.section].__doc__}"
        page = report.write(name, workload, rows, notes, command=f"`{words}`")
        if said:
            text = "\n\n".join(said)
            page.write_text(f"{page.read_text()}\n## What the commands printed\n\n```\n{text}\n```\n")
    return all(met.values())


SECTIONS = {"loop": loop, "random": randomly, "poison": poison}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--section", choices=SECTIONS, default="loop")
    parser.add_argument("--rows", type=int, default=300, help="corrections")
    parser.add_argument("--users", type=int, default=3000, help="of the canary, at most")
    parser.add_argument("--runs", type=int, default=20, help="of random feedback")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument(
        "--keep", type=Path, help="file of finished runs of random feedback: those are not run again"
    )
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    if not SECTIONS[options.section](options):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
