"""From feedback to a version that serves, or an honest "no better": the steps of one run.

Every step leaves its result in the run's state, and the next call goes on behind the last one that ended.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.errors import ConfigError, FailedPrecondition
from router.extensions.improve import canary as canaries
from router.extensions.improve import state, words
from router.extensions.improve.processes import run_command
from router.extensions.improve.recipes import SourceRecipe, find_recipe, next_version, write_recipe
from router.extensions.improve.rows import AdapterRows, Taken, digest_of, read_records, rows_from
from router.extensions.improve.rule import gains, keeps, level, rows_needed, users_needed
from router.extensions.improve.state import Result, Run, RunFolder
from router.names import version_key
from router.sources.adding import AdaptersFolder

if TYPE_CHECKING:
    from router.client import Client

LEAST_ROWS = 80  # usable rows that a run takes
OWN_SHARE = 2.0  # rows of the recipe for each new one, so that the adapter does not forget
LEAST_OWN = 100
SELECT_ROWS = 48  # of the recipe's training rows, for the loss at the end; no decision depends on them
Say = Callable[[str], None]
Connect = Callable[[], AbstractContextManager["Client"]]


@dataclass(frozen=True, slots=True)
class ImproveRequest:
    """What the command line asks for. `promote`: a canary that was won serves all users."""

    name: str
    adapters: Path = Path("adapters")
    recipes: Path = Path("recipes")
    work: Path = state.WORK
    feedback: Path | None = None  # None: the server's
    canary: float = 0.1  # share of the users who get a better version first; 0: no experiment
    promote: bool = False


class Improvement:
    """A run of one adapter. `connect` reaches the server; it raises where none answers."""

    def __init__(self, request: ImproveRequest, connect: Connect, say: Say) -> None:
        self._request, self._connect, self._say = request, connect, say

    def run(self) -> Run:
        """All steps that are left. Raises ConfigError, FailedPrecondition, ClientError, KeyboardInterrupt."""
        with state.alone(self._request.work, self._request.name):
            folder = self._begun()
            run = folder.run
            if run.result is Result.CANARY:
                self._follow(folder)
                return run
            if run.result is Result.NONE and not run.own:
                self._take_rows(folder)
            if run.result is Result.NONE and not run.trained:
                self._train(folder)
            if run.result is Result.NONE:
                self._compare(folder)
            if run.result is Result.BETTER:
                self._offer(folder)
            return run

    @cached_property
    def _recipe(self) -> SourceRecipe:
        return find_recipe(self._request.recipes, self._request.name)

    @property
    def _folders(self) -> dict[str, Path]:
        """The versions of the adapter and their folders."""
        versions = AdaptersFolder(self._request.adapters).versions()
        return {ref.version: path for ref, path in versions if ref.name == self._request.name}

    def _begun(self) -> RunFolder:
        """The run that is to go on, or a new one."""
        request = self._request
        runs = state.runs_of(request.work, request.name)
        if runs and runs[-1].run.result is Result.CANARY:
            return runs[-1]
        _ = self._recipe  # what is wrong with it is said before anything else
        base = self._serving()
        if runs and runs[-1].run.result.goes_on:
            if runs[-1].run.base == base:
                self._say(f"run {runs[-1].run.number} of {request.name} goes on")
                return runs[-1]
            runs[-1].end(Result.NO_BETTER, f"{base} serves, and the run began with {runs[-1].run.base}")
        first = state.first_of(runs, base)
        if first not in self._folders:
            raise ConfigError(
                f"{request.adapters} lacks {request.name}@{first}, from which {base} was trained: put it "
                "back; every version is trained from it and compared with it"
            )
        taken = {*self._folders, *(one.run.version for one in runs if one.run.experiment)}
        version = next_version(base)
        while version in taken:
            version = next_version(version)
        number = runs[-1].run.number + 1 if runs else 1
        begun = RunFolder(
            request.work / request.name / str(number),
            Run(number, request.name, time.time(), base, first, version),
        )
        begun.save()
        self._say(f"run {number}: {request.name}@{version} from {first}, to replace {base}")
        return begun

    def _serving(self) -> str:
        """The version that serves; without a server, the highest one there is."""
        name, folders = self._request.name, self._folders
        if not folders:
            raise ConfigError(
                f"{self._request.adapters} holds no adapter {name!r}; --adapters-dir names another folder"
            )
        version = max(folders, key=version_key)
        if self._request.feedback is None or self._request.canary:
            with self._connect() as client:
                version = client.adapters.get(name).ref.version
        if version not in folders:
            raise ConfigError(f"the server serves {name}@{version}, which is not in {self._request.adapters}")
        return version

    def _others(self, run: Run) -> list[Run]:
        """The runs before against the version that serves."""
        runs = [one.run for one in state.runs_of(self._request.work, run.name)]
        return [one for one in runs if one.base == run.base and one.number < run.number]

    def _next_verdict(self, run: Run) -> int:
        return 1 + sum(one.verdict > 0 for one in self._others(run))

    # -- 1 and 2: feedback and rows

    def _take_rows(self, folder: RunFolder) -> None:
        run = folder.run
        if self._request.feedback is not None:
            records = read_records(self._request.feedback, run.name)
        else:
            with self._connect() as client:
                records = list(client.feedback.list(run.name))
        judged = {one for before in state.runs_of(self._request.work, run.name) for one in before.run.judged}
        own = own_rows(self._recipe)
        taken = rows_from(records, own, judged)
        run.read, run.left = len(records), dict(taken.left)
        run.train, run.held_out = len(taken.train), len(taken.held_out)
        self._say(words.taken(run))
        users = len({row.unit for row in taken.held_out})
        verdict, task = self._next_verdict(run), len(own.held_out)
        needed = (LEAST_ROWS, users_needed(verdict), rows_needed(verdict))
        if run.train + run.held_out < needed[0] or users < needed[1] or task < needed[2]:
            folder.end(
                Result.TOO_FEW,
                f"{run.train + run.held_out} usable rows, {users} users held out for the comparison, {task} "
                f"validation and test rows; it takes {needed[0]} rows, {needed[1]} users who were in no "
                f"comparison before, and {needed[2]} validation and test rows",
            )
            return
        self._write_rows(folder, taken)

    def _write_rows(self, folder: RunFolder, taken: Taken) -> None:
        run, recipe = folder.run, self._recipe
        new = [{"prompt": row.prompt, "response": row.response} for row in taken.train]
        held_out = [
            {"prompt": row.prompt, "response": row.response, "unit": row.unit} for row in taken.held_out
        ]
        apart = {row["prompt"] for row in (*new, *held_out)}
        draw = random.Random(run.number)
        own = [row for row in pairs(recipe.file("train")) if row["prompt"] not in apart]
        draw.shuffle(own)
        select, own = own[:SELECT_ROWS], own[SELECT_ROWS:]
        own = own[: max(LEAST_OWN, round(OWN_SHARE * len(new)))]
        train = [*new, *own]
        draw.shuffle(train)
        task = [*pairs(recipe.file("valid")), *pairs(recipe.file("test"))]
        files = {state.TRAIN: train, state.SELECT: select, state.NEW: held_out, state.TASK: task}
        for name, rows in files.items():
            write_lines(folder.file(name), rows)
        run.own = len(own)
        folder.save()

    # -- 3: training

    def _train(self, folder: RunFolder) -> None:
        run = folder.run
        about = self._recipe.value("adapter", "description", "")
        file, run.steps = write_recipe(
            folder.path,
            self._recipe,
            version=run.version,
            start=self._folders[run.first],
            train=folder.file(state.TRAIN),
            valid=folder.file(state.SELECT),
            rows=run.train + run.own,
            about=f"{about} Trained on from {run.first} with feedback.".strip(),
        )
        self._say(f"training {run.steps} steps on {run.train} new rows and {run.own} of the recipe")
        began = time.monotonic()
        target = ["--output", str(_candidate(folder)), "--work", str(folder.file("checkpoints"))]
        run_command(["adapters", "train", str(file), "--resume", *target], shown=True)
        run.trained = max(0.1, round(time.monotonic() - began, 1))
        folder.save()

    # -- 4: comparison

    def _compare(self, folder: RunFolder) -> None:
        """Rows of the task come first: where the version may forget, no user's feedback is used up."""
        run = folder.run
        run.verdict = run.verdict or self._next_verdict(run)
        folder.save()
        self._say(f"verdict {run.verdict} against {run.base}: it may err in {100 * level(run.verdict):.2g} %")
        if not run.task:
            kept = []
            for other in dict.fromkeys((run.first, run.base)):
                self._say(f"comparing {other} and {run.version} on rows of the task")
                found = self._compared(folder, other, state.TASK)
                decision = keeps(found["changes"], run.verdict, other)
                if not decision.passes:
                    folder.end(Result.NO_BETTER, decision.why)
                    return
                kept.append(decision.why)
            run.task = "; ".join(kept)
            run.judged = sorted({digest_of(row["unit"]) for row in json_lines(folder.file(state.NEW))})
            folder.save()
        self._say(f"comparing {run.base} and {run.version} on feedback of {len(run.judged)} users")
        found = self._compared(folder, run.base, state.NEW)
        run.feedback = {name: found[name] for name in ("difference", "by_chance")}  # and no texts
        decision = gains(run.feedback, run.verdict)
        if decision.passes:
            run.result, run.why = Result.BETTER, f"{decision.why}; {run.task}"
            folder.save()
        else:
            folder.end(Result.NO_BETTER, decision.why)

    def _compared(self, folder: RunFolder, other: str, rows: str) -> Mapping[str, Any]:
        line = ["compare", str(self._folders[other]), str(_candidate(folder)), "--offline", "--json"]
        line += ["--data", str(folder.file(rows)), "--metric", self._recipe.metric]
        line += ["--max-tokens", str(self._recipe.value("generation", "max_tokens", 64))]
        found: Mapping[str, Any] = json.loads(
            run_command([*line, *(["--group-column", "unit"] if rows == state.NEW else [])])
        )
        return found

    # -- 5 and 6: among the adapters, and before users

    def _offer(self, folder: RunFolder) -> None:
        run, share = folder.run, self._request.canary
        if not share:
            self._say("without a canary the version stays in the work folder")
            return
        before = sum(bool(one.experiment) for one in self._others(run))
        with self._connect() as client:
            client.adapters.set_default(f"{run.name}@{run.base}")  # it stays, whatever is added
            if not run.folder:
                self._install(folder)
            canaries.await_version(client, run.name, run.version)
            alpha = level(before + 1)
            run.experiment = canaries.start(client, run.name, run.base, run.version, share, alpha)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime())
        folder.end(Result.CANARY, f"{run.why}; {100 * share:g} % of the users get it since {when}")

    def _install(self, folder: RunFolder) -> None:
        run, candidate = folder.run, _candidate(folder)
        self._say("writing the report card")
        judged = ["--data", str(folder.file(state.TASK)), "--metric", self._recipe.metric]
        run_command(["adapters", "evaluate", str(candidate), *judged])
        add = ["adapters", "add", str(candidate), "--report", "--adapters-dir", str(self._request.adapters)]
        run_command(add)
        if run.version not in self._folders:
            raise FailedPrecondition(
                f"{run.name}@{run.version} is not in {self._request.adapters} after it was added"
            )
        run.folder = str(self._folders[run.version])
        folder.save()

    def _follow(self, folder: RunFolder) -> None:
        """Act on the verdict of the canary."""
        from router.experiments.words import gives_up, heading

        run = folder.run
        with self._connect() as client:
            if client.adapters.get(run.name).ref.version == run.version:
                folder.end(Result.PROMOTED, f"{run.version} serves")
                return
            report = client.experiments.report(run.experiment)
            decision, stopped = report.verdict.decision, report.experiment.stopped is not None
            found = heading(report)
            self._say(f"canary {run.experiment}: {found}")
            if decision == "promote" and not stopped:
                if self._request.promote:
                    client.experiments.promote(run.experiment)
                    folder.end(Result.PROMOTED, f"{run.version} serves. {found}")
            elif decision == "stop for harm" or stopped or gives_up(report):
                if not stopped:
                    client.experiments.stop(run.experiment, reason="the version is no better")
                if Path(run.folder).is_dir():  # out of the adapters; it is kept in the run's folder
                    shutil.rmtree(_candidate(folder), ignore_errors=True)
                    shutil.move(run.folder, _candidate(folder))
                folder.end(Result.LOST, found)


def _candidate(folder: RunFolder) -> Path:
    return folder.file("version")


def own_rows(recipe: SourceRecipe) -> AdapterRows:
    """The recipe's rows, by which feedback is screened."""
    train, valid, test = (
        [(row["prompt"], row["response"]) for row in pairs(file)]
        for file in map(recipe.file, ("train", "valid", "test"))
    )
    system, labels = recipe.value("prompt", "system", ""), recipe.value("generation", "choices", ())
    return AdapterRows(train, [*valid, *test], system, labels)


def pairs(path: Path) -> list[dict[str, str]]:
    """Prompt and response of each row of a JSON-lines file."""
    return [{"prompt": str(row["prompt"]), "response": str(row["response"])} for row in json_lines(path)]


def json_lines(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a JSON-lines file, gzip by its suffix. Raises ConfigError."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, for the user alone to read."""
    path.touch(mode=0o600)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
