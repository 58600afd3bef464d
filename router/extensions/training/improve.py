"""`lora-router adapters improve`: a better version of an adapter, trained on what users said of its answers.

One call reads the feedback that a server keeps, trains a version, compares it with the version that serves,
and puts a better one before a share of the users in an experiment, whose verdict decides.

The verdicts against one serving version share `ALPHA`: the k-th may err with ALPHA / (k (k + 1)), which adds
up to ALPHA however many there are. A user judges once: then the rows of this user are trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from router.errors import ConfigError, FailedPrecondition
from router.feedback.examples import Example, example_of
from router.names import version_key
from router.quantities import SHARE
from router.types import AdapterRef, AdapterState

if TYPE_CHECKING:
    from router.client import Client
    from router.extensions.training.data import Splits, TrainingRow
    from router.extensions.training.evaluation.own_rows import VersionComparison
    from router.extensions.training.recipe import Recipe
    from router.feedback.model import Feedback
    from router.paired import Difference

ALPHA = 0.05  # chance that any of the verdicts against a serving version is wrongly "better"
MARGIN = 0.02  # loss on rows of the task that must be excluded, as a share of the best score
HELD_OUT = 0.25  # of the units: their rows are for the comparison alone, once
LEAST_ROWS = 80  # usable rows that a run takes
PER_UNIT = 20  # rows of one unit, the newest
OWN_SHARE, LEAST_OWN = 2.0, 100  # rows of the recipe for each new one, so that the adapter does not forget
SELECT_ROWS = 48  # of the recipe's training rows, for the loss at the end; no decision depends on them
EPOCHS = 2  # over the rows
RATE = 0.5  # of the recipe's learning rate: the weights are good already
VERDICTS = "verdicts.jsonl"
SEEN_SECONDS, ASKED_SECONDS = 60.0, 0.5  # until a server has noticed a new folder
Array = NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ImproveRequest:
    """What the command line asks for. `canary`: share of the users who get a better version, 0: none."""

    name: str
    model: str  # the base
    device: str = "auto"
    adapters: Path = Path("adapters")
    recipes: Path = Path("recipes")
    work: Path = Path("runs/improve")
    canary: float = 0.1

    @property
    def folder(self) -> Path:
        """Verdicts so far, and the version that was trained last."""
        return self.work / self.name


def improve(request: ImproveRequest, client: Client, say: Say) -> bool:
    """One whole run. Returns whether the new version is better.

    Raises ConfigError (recipe, adapters folder), FailedPrecondition (too few rows; the server refuses the
    version), ClientError.
    """
    from router.extensions.training import train
    from router.extensions.training.data import load_splits
    from router.extensions.training.evaluation import evaluate_rows
    from router.extensions.training.evaluation.exam import find_recipe
    from router.extensions.training.recipe import TEXT_METRICS, load_recipe

    file = find_recipe(request.recipes, request.name)
    recipe = load_recipe(file)
    if recipe.evaluation.metric not in TEXT_METRICS:
        raise ConfigError(f"{file}: improve judges by {', '.join(TEXT_METRICS)}, and this is none of them")
    serving = client.adapters.get(request.name).ref.version
    folders = versions_in(request.adapters, request.name)
    if serving not in folders:
        raise ConfigError(f"the server serves {request.name}@{serving}, which is not in {request.adapters}")
    first = min(folders, key=version_key)
    version = next_version(max(folders, key=version_key))
    splits = load_splits(recipe.data)
    before = verdicts(request.folder)
    number = 1 + sum(one["against"] == serving for one in before)
    judged = {user for one in before for user in one["users"]}
    taken = rows_from(list(client.feedback.list(request.name)), recipe, splits, judged)
    say(taken.summary())
    task = [*splits.valid, *splits.test]
    require_enough(taken, len(task), number)
    with tempfile.TemporaryDirectory() as aside:  # texts of users: gone at the end
        place = Path(aside)
        made = write_recipe(place, file, recipe, taken, splits, version, folders[first])
        target = request.folder / "version"
        say(f"training {request.name}@{version} from {first}")
        train(made, target, work=place, device=request.device)
        old = [folders[first], folders[serving]]
        why, better = _verdict(request, taken, task, recipe.evaluation.metric, old, number)
        record = {"against": serving, "version": version, "better": better, "why": why}
        users = sorted({digest_of(row.unit) for row in taken.held_out})
        _remember(request.folder, record | {"users": users})
        say(f"{request.name}@{version}: {'better' if better else 'no better'}: {why}")
        if not better or not request.canary:
            return better
        options: Any = {"metric": recipe.evaluation.metric, "base": request.model, "device": request.device}
        evaluate_rows([str(target)], data=place / "task.jsonl", say=say, **options)
    client.adapters.set_default(f"{request.name}@{serving}")  # it stays, whatever is added
    add_version(target, request.adapters, AdapterRef(request.name, version))
    await_version(client, request.name, version)
    experiment = start_canary(client, request, serving, version, level(number))
    say(
        f"{100 * request.canary:g} % of the users get it now. Follow it: lora-router experiments report "
        f"{experiment}; a click or `lora-router experiments promote {experiment}` gives it to all"
    )
    return True


def versions_in(adapters: Path, name: str) -> dict[str, Path]:
    """The versions of an adapter and their folders."""
    from router.sources.adding import AdaptersFolder

    return {ref.version: path for ref, path in AdaptersFolder(adapters).versions() if ref.name == name}


def next_version(version: str) -> str:
    """The next minor version.

    >>> next_version("1.0.0"), next_version("1.9.2"), next_version("2"), next_version("2024-a")
    ('1.1.0', '1.10.0', '2.1', '2024-a.1')
    """
    match = re.fullmatch(r"(\d+)\.(\d+)((?:\.\d+)*)", version)
    if match is None:
        return f"{version}.1"
    return f"{match[1]}.{int(match[2]) + 1}" + re.sub(r"\d+", "0", match[3])


# -- rows out of feedback


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """One request with the answer it should get. All rows of a `unit` stand on one side of the split."""

    prompt: str
    response: str
    unit: str
    time: float


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows by use, how many records were read, and how many were left out, by reason."""

    train: Sequence[FeedbackRow]
    held_out: Sequence[FeedbackRow]
    read: int
    left: Mapping[str, int]

    def summary(self) -> str:
        """For a person."""
        taken = (
            f"feedback on {self.read} answers: {len(self.train)} rows to train on, {len(self.held_out)} of "
            "users who were not seen before held out"
        )
        return "\n".join([taken, *(f"  {count} left out: {why}" for why, count in sorted(self.left.items()))])


def rows_from(
    feedback: Iterable[Feedback], recipe: Recipe, splits: Splits, judged: Collection[str] = ()
) -> Taken:
    """The rows of feedback on one adapter. `judged`: digests of units that were held out before."""
    left: Counter[str] = Counter()
    records = list(feedback)
    by_prompt: dict[str, dict[str, FeedbackRow]] = defaultdict(dict)
    for one in sorted(records, key=lambda one: one.time):
        made = example_of(one, recipe.prompt.system)
        if not isinstance(made, Example):
            left[made] += 1
            continue
        unit = one.unit or f"{one.tenant}/"
        left["the unit sent newer feedback on this prompt"] += unit in by_prompt[_key(made.prompt)]
        by_prompt[_key(made.prompt)][unit] = FeedbackRow(made.prompt, made.response, unit, one.time)
    fitting = _fitting(by_prompt, recipe, splits, left)
    by_unit: dict[str, list[FeedbackRow]] = defaultdict(list)
    for row in sorted(fitting, key=lambda row: -row.time):
        by_unit[row.unit].append(row)
    left["more rows than one unit may give"] += sum(max(0, len(own) - PER_UNIT) for own in by_unit.values())
    train: list[FeedbackRow] = []
    held_out: list[FeedbackRow] = []
    for unit, own in by_unit.items():
        digest = digest_of(unit)
        apart = digest not in judged and int(digest[:8], 16) / 2**32 < HELD_OUT
        (held_out if apart else train).extend(own[:PER_UNIT])
    return Taken(train, held_out, len(records), {why: count for why, count in left.items() if count})


def _fitting(
    by_prompt: Mapping[str, Mapping[str, FeedbackRow]], recipe: Recipe, splits: Splits, left: Counter[str]
) -> list[FeedbackRow]:
    """The newest row of each prompt, where units agree and the recipe's rows do not say otherwise."""
    labels = {_key(label): label for label in recipe.generation.choices}
    apart = {_key(row.prompt) for row in (*splits.valid, *splits.test)}
    known = {_key(row.prompt) for row in splits.train}
    found = []
    for prompt, by_unit in by_prompt.items():
        newest = max(by_unit.values(), key=lambda row: row.time)
        answers = {_key(row.response) for row in by_unit.values()}
        if len(answers) > 1:
            left["units contradict each other about this prompt"] += len(by_unit)
        elif labels and not answers <= labels.keys():
            left["the response is none of the adapter's labels"] += len(by_unit)
        elif prompt in apart or prompt in known:
            left["the prompt is a row of the recipe"] += len(by_unit)
        else:
            left["another unit's row has this prompt"] += len(by_unit) - 1
            response = labels.get(_key(newest.response), newest.response)
            found.append(FeedbackRow(newest.prompt, response, newest.unit, newest.time))
    return found


def digest_of(unit: str) -> str:
    """By which verdicts remember a unit; its first digits decide whether it is held out."""
    return hashlib.sha256(unit.encode()).hexdigest()[:16]


def _key(text: str) -> str:
    """What two texts share that count as the same: no case, white space folded."""
    return " ".join(text.casefold().split())


def require_enough(taken: Taken, task: int, number: int) -> None:
    """Raises FailedPrecondition where the n-th verdict could show nothing."""
    rows, users = len(taken.train) + len(taken.held_out), len({row.unit for row in taken.held_out})
    if rows < LEAST_ROWS or users < users_needed(number) or task < rows_needed(number):
        raise FailedPrecondition(
            f"{rows} usable rows, {users} users held out, {task} validation and test rows; it takes "
            f"{LEAST_ROWS} rows, {users_needed(number)} users who were in no comparison before, and "
            f"{rows_needed(number)} validation and test rows: wait for more feedback"
        )


# -- training


def write_recipe(
    folder: Path, source: Path, recipe: Recipe, taken: Taken, splits: Splits, version: str, start: Path
) -> Path:
    """Write the rows, and the recipe of a version that starts from the weights in `start`; returns its file.

    Its weights are judged once, at the end: rows that decide must not choose.
    """
    from router.extensions.training.export import toml_text, write_lines

    draw = random.Random(version)
    own = [{"prompt": row.prompt, "response": row.response} for row in splits.train]
    draw.shuffle(own)
    select, own = own[:SELECT_ROWS], own[SELECT_ROWS:]
    new = [{"prompt": row.prompt, "response": row.response} for row in taken.train]
    train = new + own[: max(LEAST_OWN, round(OWN_SHARE * len(new)))]
    draw.shuffle(train)
    task = [{"prompt": row.prompt, "response": row.response} for row in (*splits.valid, *splits.test)]
    for name, rows in {"train": train, "valid": select, "task": task}.items():
        write_lines(folder / f"{name}.jsonl", rows)
    shutil.copyfile(source, folder / "source.toml")
    steps = max(1, round(EPOCHS * len(train) / recipe.train.batch))
    about = f"{recipe.adapter.description} Trained on with feedback.".strip()
    tables: dict[str, dict[str, Any]] = {
        "adapter": {"version": version, "description": about},
        "lora": {"start": str(start.resolve())},
        "data": {
            "train": "train.jsonl",
            "valid": "valid.jsonl",
            "test": str(recipe.data.test.resolve()),
            "fraction": 1.0,
        },
        "train": {
            "steps": steps,
            "eval_every": steps,
            "learning_rate": RATE * recipe.train.learning_rate,
            "select": "loss",
        },
    }
    made = folder / "recipe.toml"
    made.write_text(f'like = "source.toml"\n\n{toml_text(tables)}', encoding="utf-8")
    return made


# -- the verdict


def level(verdict: int) -> float:
    """The chance of error of the n-th verdict against a serving version, from 1 on.

    >>> [round(level(verdict), 4) for verdict in (1, 2, 3, 10)]
    [0.025, 0.0083, 0.0042, 0.0005]
    """
    return ALPHA / (verdict * (verdict + 1))


def users_needed(verdict: int) -> int:
    """Users whose feedback the n-th verdict takes: its test can pass even if half of them show no gain.

    >>> [users_needed(verdict) for verdict in (1, 2, 3, 10)]
    [12, 14, 16, 24]
    """
    return 2 * math.ceil(math.log2(1 / level(verdict)))


def rows_needed(verdict: int) -> int:
    """Task rows that the n-th verdict takes: with fewer, not even equal answers show that nothing is lost.

    >>> [rows_needed(verdict) for verdict in (1, 2, 3, 10)]
    [193, 287, 349, 551]
    """
    return math.ceil(NormalDist().inv_cdf(1 - level(verdict)) ** 2 / MARGIN)


def lowest(total: Array, squares: Array, rows: int, alpha: float) -> Array:
    """Lower confidence bounds, one-sided at `alpha`, of the mean change by row.

    `total` and `squares` are the sums of the changes (-1 to 1) and of their squares. Pairs of +1 and -1 are
    added (Agresti and Coull), so that few equal rows do not give an interval of width zero.
    """
    reach = NormalDist().inv_cdf(1 - alpha)
    pairs = reach**2 / 2
    count = rows + 2 * pairs
    mean = total / count
    spread = (squares + 2 * pairs) / count - mean**2
    bounds: Array = mean - reach * np.sqrt(spread / count)
    return bounds


def _verdict(
    request: ImproveRequest,
    taken: Taken,
    task: Sequence[TrainingRow],
    metric: str,
    old: Sequence[Path],
    number: int,
) -> tuple[str, bool]:
    """Why, and whether the version is better: nothing is lost against each of `old`, and on the held-out rows
    it gains against the last of them."""
    from router.extensions.training.evaluation.exam import find_candidate, ready_base
    from router.extensions.training.evaluation.own_rows import compare_folders
    from router.extensions.training.rows import PromptPair

    new = find_candidate(str(request.folder / "version"), request.adapters)
    others = [find_candidate(str(folder), request.adapters) for folder in dict.fromkeys(old)]
    known = [PromptPair(row.prompt, row.response, _key(row.prompt)) for row in task]
    asked = [PromptPair(row.prompt, row.response, row.unit) for row in taken.held_out]
    with ready_base(request.model, request.device) as ready:
        for other in others:
            lost = losses(compare_folders(other, new, known, ready, metric), number)
            if lost:
                return lost, False
        return gains(compare_folders(others[-1], new, asked, ready, metric), number)


def losses(found: VersionComparison, number: int) -> str:
    """Why a loss of `MARGIN` on the task is not excluded; empty where it is."""
    changes = np.array([row.change for row in found.rows])
    low = float(lowest(changes.sum(), (changes**2).sum(), len(changes), level(number)))
    if low > -MARGIN:
        return ""
    return (
        f"it may forget: {SHARE.difference(found.difference.mean)} ({SHARE.difference(low)} or more) on "
        f"{len(changes)} task rows, and a loss of {SHARE.margin(MARGIN)} must be excluded"
    )


def gains(found: VersionComparison, number: int) -> tuple[str, bool]:
    """The gain on feedback in words, and whether it is shown.

    People correct what was wrong, so any other answer looks like a gain: the answers also have to agree with
    their own corrections more than with those of other requests.
    """
    gap = found.difference
    shown = f"{SHARE.change(gap.mean, gap.low, gap.high)} on {gap.rows} rows of {gap.groups} users held out"
    if not _is_gain(gap, number):
        return f"no gain is shown: {shown}, p = {gap.p:.2g} in verdict {number}", False
    if not _is_gain(found.by_chance, number):
        return f"the feedback contradicts itself: answers agree with any correction alike ({shown})", False
    return shown, True


def _is_gain(gap: Difference, number: int) -> bool:
    """Whether it is above zero by more than chance. Half of a two-sided p is the one-sided one."""
    return bool(gap.mean > 0 and gap.p / 2 <= level(number))


def verdicts(folder: Path) -> list[dict[str, Any]]:
    """All verdicts so far. Raises FailedPrecondition where the file is damaged."""
    file = folder / VERDICTS
    if not file.is_file():
        return []
    try:
        return [dict(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise FailedPrecondition(f"{file} cannot be read: {error}; remove it to begin anew") from error


def _remember(folder: Path, record: Mapping[str, Any]) -> None:
    with (folder / VERDICTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


# -- before users


def add_version(made: Path, adapters: Path, ref: AdapterRef) -> None:
    """Put the folder among the adapters, in one step."""
    from router.extensions.training.evaluation.subject import read_manifest
    from router.extensions.training.files import new_folder
    from router.sources.adding import AdaptersFolder

    target = AdaptersFolder(adapters).target(ref, read_manifest(made)).folder
    with new_folder(target, marker="adapter_config.json") as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True)


def await_version(client: Client, name: str, version: str) -> None:
    """Until the server knows a version whose folder was just added. Raises FailedPrecondition."""
    from router.client import ClientError

    end = time.monotonic() + SEEN_SECONDS
    while True:
        try:
            found = client.adapters.get(f"{name}@{version}")
        except ClientError as error:
            if error.code != "NOT_FOUND" or time.monotonic() > end:
                raise
        else:
            if found.state is AdapterState.QUARANTINED:
                raise FailedPrecondition(f"the server refuses {name}@{version}: {found.error}")
            return
        time.sleep(ASKED_SECONDS)


def start_canary(client: Client, request: ImproveRequest, old: str, new: str, alpha: float) -> str:
    """Create and start the experiment; returns its name: improve-medical-1-1-0. Feedback decides."""
    from router.client.calls import Call
    from router.v1 import experiments_pb2 as pb
    from router.v1.experiments_pb2_grpc import ExperimentServiceStub

    called = re.sub(r"[^a-z0-9-]+", "-", f"improve-{request.name}-{new}".lower())[:63].strip("-")
    metric = pb.Experiment.Metric
    adapter, share = f"adapters/{request.name}", request.canary
    plan = pb.Experiment(
        hypothesis=f"{request.name} {new}, trained on feedback, pleases more users than {old}",
        route=adapter,
        arms=[
            pb.Experiment.Arm(name="old", weight=1 - share, adapter=f"{adapter}/versions/{old}"),
            pb.Experiment.Arm(name="new", weight=share, adapter=f"{adapter}/versions/{new}"),
        ],
        control="old",
        primary=metric(name="feedback", kind=metric.KIND_PROPORTION, missing=metric.MISSING_EXCLUDED),
        guardrails=[
            metric(name=name, kind=metric.KIND_PROPORTION, higher_is_better=False, margin=0.1)
            for name in ("error", "cancelled")
        ],
        alpha=alpha,
        planned_units=5000,
        window={"seconds": 86_400},
    )
    stub: Any = ExperimentServiceStub(client.channel)  # type: ignore[no-untyped-call]
    create = pb.CreateExperimentRequest(experiment_id=called, experiment=plan)
    client.answer(stub, Call("CreateExperiment", create, {}, lambda _: None))
    start = pb.StartExperimentRequest(name=f"experiments/{called}")
    client.answer(stub, Call("StartExperiment", start, {}, lambda _: None))
    return called
