"""`lora-router adapters improve`: a better version of an adapter, trained on what users said of its answers.

One call reads the feedback that a server keeps, trains a version, and compares it with the version that
serves. Nothing serves by that: a person adds the version and lets an experiment decide.

The verdicts against one serving version share `ALPHA`: the k-th may err with ALPHA / (k (k + 1)), which adds
up to ALPHA however many there are. A user judges once: then the rows of this user are trained on.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.errors import ConfigError, FailedPrecondition
from router.extensions.training.data import Splits, load_splits
from router.extensions.training.evaluation.exam import Say, find_candidate, find_recipe, ready_base
from router.extensions.training.evaluation.versions import VersionComparison, compare_folders
from router.extensions.training.export import toml_text, write_lines
from router.extensions.training.recipe import TEXT_METRICS, Recipe, load_recipe
from router.extensions.training.rows import PromptPair, prompt_key
from router.feedback.examples import Example, example_of
from router.names import version_key
from router.quantities import SHARE
from router.sources.adding import AdaptersFolder

if TYPE_CHECKING:
    from router.client import Client
    from router.feedback.model import Feedback

ALPHA = 0.05  # chance that any of the verdicts against a serving version is wrongly "better"
MARGIN = 0.02  # loss on rows of the task that must be excluded, as a share of the best score
HELD_OUT = 0.25  # of the units: their rows are for the comparison alone, once
LEAST_ROWS, LEAST_USERS = 80, 12  # usable rows, and users held out, that a run takes
PER_UNIT = 20  # rows of one unit, the newest
OWN_SHARE, LEAST_OWN = 2.0, 100  # rows of the recipe for each new one, so that the adapter does not forget
SELECT_ROWS = 48  # of the recipe's training rows, for the loss at the end; no decision depends on them
EPOCHS = 2  # over the rows
RATE = 0.5  # of the recipe's learning rate: the weights are good already
VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True, slots=True)
class ImproveRequest:
    """What the command line asks for."""

    name: str
    model: str  # the base
    device: str = "auto"
    adapters: Path = Path("adapters")
    recipes: Path = Path("recipes")
    work: Path = Path("runs/improve")

    @property
    def folder(self) -> Path:
        """Verdicts so far, and the version that was trained last."""
        return self.work / self.name


def improve(request: ImproveRequest, client: Client, say: Say) -> bool:
    """One whole run. Returns whether the new version is better.

    Raises ConfigError (recipe, adapters folder), FailedPrecondition (too few rows), ClientError.
    """
    from router.extensions.training.run import train

    file = find_recipe(request.recipes, request.name)
    recipe = load_recipe(file)
    if recipe.evaluation.metric not in TEXT_METRICS:
        raise ConfigError(f"{file}: improve judges by {', '.join(TEXT_METRICS)}, and this is none of them")
    serving = client.adapters.get(request.name).ref.version
    versions = AdaptersFolder(request.adapters).versions()
    folders = {ref.version: path for ref, path in versions if ref.name == request.name}
    if serving not in folders:
        raise ConfigError(f"the server serves {request.name}@{serving}, which is not in {request.adapters}")
    first = folders[min(folders, key=version_key)]
    version = next_version(max(folders, key=version_key))
    splits = load_splits(recipe.data)
    before = verdicts(request.folder)
    number = 1 + sum(one["against"] == serving for one in before)
    judged = {user for one in before for user in one["users"]}
    taken = rows_from(list(client.feedback.list(request.name)), recipe, splits, judged)
    say(taken.summary())
    users = sorted({digest_of(row.unit) for row in taken.held_out})
    rows = len(taken.train) + len(taken.held_out)
    if rows < LEAST_ROWS or len(users) < LEAST_USERS:
        raise FailedPrecondition(
            f"{rows} usable rows, {len(users)} users held out; it takes {LEAST_ROWS} rows and {LEAST_USERS} "
            "users who were in no comparison before: wait for more feedback"
        )
    target = request.folder / "version"
    with tempfile.TemporaryDirectory() as aside:  # texts of users: gone at the end
        made = write_recipe(Path(aside), file, recipe, taken, splits, version, first)
        say(f"training {request.name}@{version} from {first}")
        train(made, target, work=Path(aside), device=request.device)
    why, better = _verdict(
        request, taken, splits, recipe.evaluation.metric, [first, folders[serving]], number
    )
    record = {"against": serving, "version": version, "better": better, "why": why, "users": users}
    with (request.folder / VERDICTS).open("a", encoding="utf-8") as log:
        log.write(json.dumps(record, ensure_ascii=False) + "\n")
    say(f"{request.name}@{version} in {target}: {'better' if better else 'no better'}: {why}")
    if better:
        say(
            f"next, before users: lora-router adapters add {target}, which without a report card replaces "
            f"nothing, and an experiment with {request.name}@{serving} and {request.name}@{version}"
        )
    return better


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
        left["the unit sent newer feedback on this prompt"] += unit in by_prompt[prompt_key(made.prompt)]
        by_prompt[prompt_key(made.prompt)][unit] = FeedbackRow(made.prompt, made.response, unit, one.time)
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
    labels = {prompt_key(label): label for label in recipe.generation.choices}
    apart = {prompt_key(row.prompt) for row in (*splits.valid, *splits.test)}
    known = {prompt_key(row.prompt) for row in splits.train}
    found = []
    for prompt, by_unit in by_prompt.items():
        newest = max(by_unit.values(), key=lambda row: row.time)
        answers = {prompt_key(row.response) for row in by_unit.values()}
        if len(answers) > 1:
            left["units contradict each other about this prompt"] += len(by_unit)
        elif labels and not answers <= labels.keys():
            left["the response is none of the adapter's labels"] += len(by_unit)
        elif prompt in apart or prompt in known:
            left["the prompt is a row of the recipe"] += len(by_unit)
        else:
            left["another unit's row has this prompt"] += len(by_unit) - 1
            response = labels.get(prompt_key(newest.response), newest.response)
            found.append(FeedbackRow(newest.prompt, response, newest.unit, newest.time))
    return found


def digest_of(unit: str) -> str:
    """By which verdicts remember a unit; its first digits decide whether it is held out."""
    return hashlib.sha256(unit.encode()).hexdigest()[:16]


# -- training


def write_recipe(
    folder: Path, source: Path, recipe: Recipe, taken: Taken, splits: Splits, version: str, start: Path
) -> Path:
    """Write the rows, and the recipe of a version that starts from the weights in `start`; returns its file.

    Its weights are judged once, at the end: rows that decide must not choose.
    """
    draw = random.Random(version)
    own = [{"prompt": row.prompt, "response": row.response} for row in splits.train]
    draw.shuffle(own)
    select, own = own[:SELECT_ROWS], own[SELECT_ROWS:]
    new = [{"prompt": row.prompt, "response": row.response} for row in taken.train]
    train = new + own[: max(LEAST_OWN, round(OWN_SHARE * len(new)))]
    draw.shuffle(train)
    for name, rows in {"train": train, "valid": select}.items():
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


def _verdict(
    request: ImproveRequest,
    taken: Taken,
    splits: Splits,
    metric: str,
    old: Sequence[Path],
    number: int,
) -> tuple[str, bool]:
    """Why, and whether the version is better: nothing is lost against each of `old`, and on the held-out rows
    it gains against the last of them."""
    new = find_candidate(str(request.folder / "version"), request.adapters)
    others = [find_candidate(str(folder), request.adapters) for folder in dict.fromkeys(old)]
    task = (*splits.valid, *splits.test)
    known = [PromptPair(row.prompt, row.response, prompt_key(row.prompt)) for row in task]
    asked = [PromptPair(row.prompt, row.response, row.unit) for row in taken.held_out]
    with ready_base(request.model, request.device) as ready:
        for other in others:
            lost = losses(compare_folders(other, new, known, ready, metric))
            if lost:
                return lost, False
        return gains(compare_folders(others[-1], new, asked, ready, metric), number)


def losses(found: VersionComparison) -> str:
    """Why a loss of `MARGIN` on the task is not excluded; empty where it is."""
    gap = found.difference
    if gap.low > -MARGIN:
        return ""
    return (
        f"it may forget: {SHARE.change(gap.mean, gap.low, gap.high)} on {gap.rows} validation and test rows, "
        f"and a loss of {SHARE.margin(MARGIN)} must be excluded"
    )


def gains(found: VersionComparison, number: int) -> tuple[str, bool]:
    """The gain on feedback in words, and whether it is shown: half of a two-sided p is the one-sided one."""
    gap = found.difference
    shown = f"{SHARE.change(gap.mean, gap.low, gap.high)} on {gap.rows} rows of {gap.groups} users held out"
    if gap.mean > 0 and gap.p / 2 <= level(number):
        return shown, True
    return f"no gain is shown: {shown}, p = {gap.p:.2g} in verdict {number}", False


def verdicts(folder: Path) -> list[dict[str, Any]]:
    """All verdicts so far. Raises FailedPrecondition where the file is damaged."""
    file = folder / VERDICTS
    if not file.is_file():
        return []
    try:
        return [dict(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise FailedPrecondition(f"{file} cannot be read: {error}; remove it to begin anew") from error
