"""From feedback to a version that serves, or an honest "no better": the steps of one run.

Every step leaves its result in the run's state, and the next call goes on behind the last one that ended.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from router.errors import ConfigError, FailedPrecondition
from router.extensions.improve import canary as canaries
from router.extensions.improve import state, words
from router.extensions.improve.canary import Canary
from router.extensions.improve.processes import Limits, run_command
from router.extensions.improve.recipes import SourceRecipe, find_recipe, next_recipe, next_version
from router.extensions.improve.records import read_records
from router.extensions.improve.rows import AdapterRows, Taken, rows_from
from router.extensions.improve.rule import decide
from router.extensions.improve.state import LEAST_ROWS, Result, Run, RunFolder
from router.feedback.model import Feedback
from router.names import version_key
from router.sources.adding import AdaptersFolder

if TYPE_CHECKING:
    from router.client import Client

OWN_SHARE = 2.0  # rows of the recipe for each new one, so that the adapter does not forget
LEAST_OWN = 100
SELECT_ROWS = 48  # of the recipe's training rows, for the loss at the end; no decision depends on them
LEAST_HELD_OUT = 20
Promote = Literal["auto", "ask", "no"]
Say = Callable[[str], None]
Connect = Callable[[], AbstractContextManager["Client"]]


@dataclass(frozen=True, slots=True)
class ImproveRequest:
    """What the command line asks for. `margin` in points of 100."""

    name: str
    adapters: Path = Path("adapters")
    recipes: Path = Path("recipes")
    work: Path = state.WORK
    feedback: Path | None = None
    least: int = LEAST_ROWS
    alpha: float = 0.05
    margin: float = 1.0
    canary: Canary | None = field(default_factory=Canary)  # None: no experiment
    promote: Promote = "ask"
    limits: Limits = field(default_factory=Limits)
    at: str = ""  # HH:MM, when training may begin
    fresh: bool = False  # begin a new run, whatever the last one left


class Improvement:
    """A run of one adapter. `connect` reaches the server; it raises where none answers."""

    def __init__(
        self,
        request: ImproveRequest,
        connect: Connect,
        say: Say,
        confirm: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self._request, self._connect, self._say, self._confirm = request, connect, say, confirm

    def run(self) -> Run:
        """All steps that are left. Raises ConfigError, FailedPrecondition, ClientError, KeyboardInterrupt."""
        request = self._request
        recipe = find_recipe(request.recipes, request.name)
        with state.alone(request.work, request.name):
            folder = self._begun()
            run = folder.run
            if run.result is Result.CANARY:
                self._follow(folder)
                return run
            if run.result is Result.NONE and not run.rows_sha256:
                self._take_rows(folder, recipe)
            if run.result is Result.NONE and not run.trained:
                self._train(folder, recipe)
            if run.result is Result.NONE:
                self._compare(folder, recipe)
            if run.result is Result.BETTER:
                self._offer(folder, recipe)
            return run

    def _begun(self) -> RunFolder:
        """The run that is to go on, or a new one."""
        request = self._request
        runs = state.runs_of(request.work, request.name)
        if runs and runs[-1].run.result.goes_on and not request.fresh:
            self._say(f"run {runs[-1].run.number} of {request.name} goes on")
            return runs[-1]
        version, folder = self._serving()
        number = runs[-1].run.number + 1 if runs else 1
        known = {
            ref.version for ref, _ in AdaptersFolder(request.adapters).versions() if ref.name == request.name
        }
        made = next_version(version)
        while made in known:
            made = next_version(made)
        run = Run(number, request.name, time.time(), version, str(folder), made)
        begun = RunFolder(request.work / request.name / str(number), run)
        begun.save()
        self._say(f"run {number}: {request.name}@{version} to {made}")
        return begun

    def _serving(self) -> tuple[str, Path]:
        """The version that serves and its folder; without a server, the highest one there is."""
        name = self._request.name
        known = {
            ref.version: path
            for ref, path in AdaptersFolder(self._request.adapters).versions()
            if ref.name == name
        }
        if not known:
            raise ConfigError(
                f"{self._request.adapters} holds no adapter {name!r}; --adapters-dir names another folder"
            )
        version = max(known, key=version_key)
        if self._request.feedback is None or self._request.canary is not None:
            with self._connect() as client:
                version = client.adapters.get(name).ref.version
        if version not in known:
            raise ConfigError(f"the server serves {name}@{version}, which is not in {self._request.adapters}")
        return version, known[version]

    # -- 1 and 2: feedback and rows

    def _take_rows(self, folder: RunFolder, recipe: SourceRecipe) -> None:
        request, run = self._request, folder.run
        before = state.runs_of(request.work, request.name)
        since = max((one.run.until for one in before if one.run.result.offered), default=0.0)
        records = self._records(since)
        taken = rows_from(records, own_rows(recipe))
        run.read, run.until = len(records), max((one.time for one in records), default=since)
        run.train, run.held_out, run.left = len(taken.train), len(taken.held_out), dict(taken.left)
        run.masked = dict(taken.masked)
        self._say(words.taken(run, since))
        usable = run.train + run.held_out
        if usable < request.least or run.held_out < LEAST_HELD_OUT:
            least = f"{request.least} (--least), {LEAST_HELD_OUT} of them held out for the comparison"
            folder.end(Result.TOO_FEW, f"{usable} usable rows, {run.held_out} held out; it takes {least}")
            return
        self._write_rows(folder, recipe, taken)

    def _records(self, since: float) -> list[Feedback]:
        """Feedback that is newer than `since`, of the file, else of the server."""
        if self._request.feedback is not None:
            return read_records(self._request.feedback, self._request.name, since)
        with self._connect() as client:
            found = client.feedback.list(self._request.name, since=since)
            return [one for one in found if one.time > since]

    def _write_rows(self, folder: RunFolder, recipe: SourceRecipe, taken: Taken) -> None:
        run = folder.run
        new = [{"prompt": row.prompt, "response": row.response} for row in taken.train]
        held_out = [
            {"prompt": row.prompt, "response": row.response, "unit": row.unit} for row in taken.held_out
        ]
        apart = {row["prompt"] for row in (*new, *held_out)}
        draw = random.Random(run.number)
        own = [row for row in pairs(json_lines(recipe.file("train"))) if row["prompt"] not in apart]
        draw.shuffle(own)
        select, own = own[:SELECT_ROWS], own[SELECT_ROWS:]
        own = own[: max(LEAST_OWN, round(OWN_SHARE * len(new)))]
        train = [*new, *own]
        draw.shuffle(train)
        valid = list(pairs(json_lines(recipe.file("valid"))))
        for name, rows in (
            (state.TRAIN, train),
            (state.SELECT, select),
            (state.NEW, held_out),
            (state.OLD, valid),
            (state.CHECKED, [*valid, *pairs(held_out)]),  # the first ones are samples of the report card
        ):
            write_lines(folder.file(name), rows)
        run.own = len(own)
        texts = folder.file(state.TRAIN).read_bytes() + folder.file(state.NEW).read_bytes()
        run.rows_sha256 = hashlib.sha256(texts).hexdigest()
        folder.save()

    # -- 3: training

    def _train(self, folder: RunFolder, recipe: SourceRecipe) -> None:
        run = folder.run
        about = str(recipe.values["adapter"].get("description", ""))
        about = f"{about} Trained on from {run.base} with feedback.".strip()
        text, run.steps = next_recipe(
            recipe,
            version=run.version,
            start=Path(run.base_folder),
            train=folder.file(state.TRAIN),
            valid=folder.file(state.SELECT),
            rows=run.train + run.own,
            about=about,
        )
        file = folder.file("recipe.toml")
        file.write_text(text, encoding="utf-8")
        wait_until(self._request.at, self._say)
        self._say(f"training {run.steps} steps on {run.train} new rows and {run.own} of the recipe")
        began = time.monotonic()
        target = ["--output", str(self._candidate(folder)), "--work", str(folder.file("checkpoints"))]
        self._command(folder, ["adapters", "train", str(file), "--resume", *target])
        run.trained = max(0.1, round(time.monotonic() - began, 1))
        folder.save()

    # -- 4: comparison

    def _compare(self, folder: RunFolder, recipe: SourceRecipe) -> None:
        run = folder.run
        self._say(
            f"comparing {run.base} and {run.version} on {run.held_out} held-out rows and the validation rows"
        )
        run.new = run.new or self._compared(folder, recipe, state.NEW)
        folder.save()
        run.old = run.old or self._compared(folder, recipe, state.OLD)
        decision = decide(run.new, run.old, self._request.alpha, self._request.margin)
        if decision.better:
            run.result, run.why = Result.BETTER, decision.why
            folder.save()
        else:
            folder.end(Result.NO_BETTER, decision.why)

    def _compared(self, folder: RunFolder, recipe: SourceRecipe, rows: str) -> Mapping[str, Any]:
        arguments = ["compare", folder.run.base_folder, str(self._candidate(folder)), "--offline"]
        options = ["--data", str(folder.file(rows)), "--metric", recipe.metric, "--json"]
        group = ["--group-column", "unit"] if rows == state.NEW else []
        most = ["--max-tokens", str(recipe.answer_tokens)]
        printed = self._command(folder, [*arguments, *options, *group, *most], shown=False)
        found = json.loads(printed)
        kept = ("old_score", "new_score", "difference", "by_chance")
        return {name: found[name] for name in kept}  # without the regressions, which hold texts

    # -- 5 and 6: among the adapters, and before users

    def _offer(self, folder: RunFolder, recipe: SourceRecipe) -> None:
        run, canary = folder.run, self._request.canary
        if canary is None:
            self._say("without a canary the version stays in the work folder")
            return
        with self._connect() as client:
            canaries.pin(client, run.name, run.base)
            if not run.folder:
                self._install(folder, recipe)
            canaries.await_version(client, run.name, run.version)
            run.experiment = canaries.start(client, run.name, run.base, run.version, canary)
        why = f"{run.why}; {100 * canary.share:g} % of the users get it since {words.clock(time.time())}"
        folder.end(Result.CANARY, why)

    def _install(self, folder: RunFolder, recipe: SourceRecipe) -> None:
        run, candidate = folder.run, self._candidate(folder)
        self._say("writing the report card")
        options = ["--data", str(folder.file(state.CHECKED)), "--metric", recipe.metric]
        self._command(folder, ["adapters", "evaluate", str(candidate), *options], shown=False)
        report = candidate / "report.json"
        card = json.loads(report.read_text(encoding="utf-8"))
        report.write_text(
            json.dumps(card | {"improved_from": words.provenance(run)}, ensure_ascii=False, indent=1) + "\n",
            encoding="utf-8",
        )
        add = ["adapters", "add", str(candidate), "--report", "--adapters-dir", str(self._request.adapters)]
        self._command(folder, add, shown=False)
        versions = AdaptersFolder(self._request.adapters).versions()
        made = next(
            (path for ref, path in versions if (ref.name, ref.version) == (run.name, run.version)), None
        )
        if made is None:
            raise FailedPrecondition(
                f"{run.name}@{run.version} is not in {self._request.adapters} after it was added"
            )
        run.folder = str(made)
        folder.save()

    def _follow(self, folder: RunFolder) -> None:
        """Act on the verdict of the canary, as `--promote` says."""
        run, promote = folder.run, self._request.promote
        with self._connect() as client:
            if client.adapters.get(run.name).ref.version == run.version:
                folder.end(Result.PROMOTED, f"{run.version} serves")
                return
            report = client.experiments.report(run.experiment)
            ruling, stopped = report.verdict, report.experiment.stopped is not None
            found = canaries.sentence(report)
            self._say(f"canary {run.experiment}: {found}")
            if ruling.decision == "promote" and not stopped:
                if promote == "auto" or (
                    promote == "ask" and self._confirm(f"let {run.version} serve all users?")
                ):
                    client.experiments.promote(run.experiment)
                    folder.end(Result.PROMOTED, f"{run.version} serves. {found}")
            elif ruling.decision == "stop for harm" or stopped or canaries.gives_up(report):
                if not stopped:
                    client.experiments.stop(run.experiment, reason="the version is no better")
                self._withdraw(folder)
                folder.end(Result.LOST, found)

    def _withdraw(self, folder: RunFolder) -> None:
        """Take the version out of the adapters folder; it is kept in the run's."""
        place = Path(folder.run.folder)
        if folder.run.folder and place.is_dir():
            shutil.rmtree(self._candidate(folder), ignore_errors=True)
            shutil.move(place, self._candidate(folder))

    def _candidate(self, folder: RunFolder) -> Path:
        return folder.file("version")

    def _command(self, folder: RunFolder, line: Sequence[str], *, shown: bool = True) -> str:
        return run_command(line, self._request.limits, folder.file("commands.log"), shown=shown)


def own_rows(recipe: SourceRecipe) -> AdapterRows:
    """The recipe's rows, by which feedback is screened."""
    splits = {name: json_lines(recipe.file(name)) for name in ("train", "valid", "test")}
    texts = {name: [(row["prompt"], row["response"]) for row in pairs(rows)] for name, rows in splits.items()}
    return AdapterRows(texts["train"], [*texts["valid"], *texts["test"]], recipe.system, recipe.choices)


def wait_until(at: str, say: Say, now: Callable[[], float] = time.time) -> None:
    """Sleep until the next HH:MM of local time; at once where it is empty. Raises ConfigError."""
    if not at:
        return
    hours, _, minutes = at.partition(":")
    if not (hours.isdigit() and minutes.isdigit() and int(hours) < 24 and int(minutes) < 60):
        raise ConfigError(f"--at {at!r}: must be HH:MM, such as 02:00")
    today = time.localtime(now())
    end = time.mktime((*today[:3], int(hours), int(minutes), 0, 0, 0, -1))
    end += 86_400 if end <= now() else 0
    say(f"training waits until {at}; Ctrl-C ends this, and the same command goes on")
    while (left := end - now()) > 0:
        time.sleep(min(left, 30.0))


def json_lines(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a JSON-lines file, gzip by its suffix. Raises ConfigError."""
    import gzip

    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def pairs(rows: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, str]]:
    """Prompt and response alone."""
    return ({"prompt": str(row["prompt"]), "response": str(row["response"])} for row in rows)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, for the user alone to read."""
    path.touch(mode=0o600)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
