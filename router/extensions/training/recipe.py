"""A training recipe: one TOML file that says everything a run depends on."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from router.engine.constrained.source import TEMPLATE_NAME
from router.errors import ConfigError
from router.names import NAME_RULE, VERSION_RULE, is_name, is_version
from router.types import PLACEHOLDER, Constraint, PromptTemplate

WEIGHTS = "adapter_model.safetensors"


class RecipeTable(BaseModel):
    """A table of the recipe: nothing unknown in it, nothing changed after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _rule(holds: Callable[[str], bool], words: str) -> AfterValidator:
    def check(text: str) -> str:
        if not holds(text):
            raise ValueError(f"must be {words}")
        return text

    return AfterValidator(check)


def _is_pattern(text: str) -> bool:
    try:
        return re.compile(text).groups > 0
    except re.error:
        return False


Metric = Literal["exact_match", "chrf", "token_f1", "rouge_l", "execution"]
TEXT_METRICS = tuple(name for name in get_args(Metric) if name != "execution")  # which needs schemas
Pattern = Annotated[str, _rule(_is_pattern, "a regular expression with a group")]
Name = Annotated[str, _rule(is_name, NAME_RULE)]
Version = Annotated[str, _rule(is_version, VERSION_RULE)]


class RecipeIdentity(RecipeTable):
    """`[adapter]`, copied into the manifest."""

    name: Name
    version: Version = "1.0.0"
    description: str = ""
    domain: str = ""
    task: str = ""
    license: str = ""


class RecipeBase(RecipeTable):
    """`[base]`: the default base, a folder or a hub id."""

    model: str = "smollm2-135m-instruct"


class Data(RecipeTable):
    """`[data]`: JSON lines with `prompt` and `response`, `.gz` allowed, relative to the recipe."""

    train: Path
    valid: Path
    test: Path
    max_tokens: int = Field(default=512, ge=8)  # of a row; a longer train row is left out and counted


class PromptTable(RecipeTable):
    """`[prompt]`, copied into the manifest."""

    system: str = ""
    template: str = PLACEHOLDER

    def as_template(self) -> PromptTemplate:
        """As the engine knows it."""
        return PromptTemplate(self.system, self.template)

    @model_validator(mode="after")
    def _has_a_place_for_the_prompt(self) -> PromptTable:
        if problem := self.as_template().problem:
            raise ValueError(f"template {problem}")
        return self


class RecipeLora(RecipeTable):
    """`[lora]`: Hu et al. 2021, https://arxiv.org/abs/2106.09685."""

    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    invocation: str = Field(default="", max_length=512)  # activated LoRA: acts from the last of it on
    start: Path | None = None  # the folder of an adapter whose weights are the first, relative to the recipe

    @model_serializer(mode="wrap")
    def _said(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No invocation where there is none, so that logs and checkpoints without one stay what they are.

        Never the start, which is another place on another machine: its weights' digest stands in its place.
        """
        values: dict[str, Any] = plain(self)
        left_out = {"start"} if self.invocation else {"start", "invocation"}
        return {key: value for key, value in values.items() if key not in left_out}


class Training(RecipeTable):
    """`[train]`: AdamW with warm-up; the weights of the best evaluation are kept."""

    steps: int = Field(ge=1)
    batch: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.06, ge=0, lt=1)  # part of the steps
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)  # largest gradient norm
    seed: int = Field(default=0, ge=0)
    eval_every: int = Field(default=50, ge=1)
    patience: int = Field(default=5, ge=1)  # evaluations without a gain before it stops
    select: Literal["loss", "exact"] = "loss"  # what "best" means on the validation split


class Evaluation(RecipeTable):
    """`[evaluation]`: how the answers are judged."""

    metric: Metric = "exact_match"
    parts: dict[str, Pattern] = {}  # of an answer, judged for themselves: name -> pattern with a group
    shots: int = Field(default=3, ge=0)  # worked examples of the few-shot arm, from the train split
    probes: int = Field(default=4, ge=1, le=16)


class RecipeGeneration(RecipeTable):
    """`[generation]`, copied into the manifest."""

    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()  # labels: every answer is one of them
    from_prompt: str = Field(default="", pattern=f"^({TEMPLATE_NAME.pattern})?$")  # a template of constraints

    def given(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """What a manifest says of it: no constraint where there is none."""
        unset = {name for name in ("choices", "from_prompt") if not getattr(self, name)}
        return self.model_dump(mode=mode, exclude=unset)

    def as_constraint(self) -> Constraint | None:
        """What every answer must look like."""
        if self.from_prompt:
            return Constraint("from_prompt", self.from_prompt)
        return Constraint("choices", choices=self.choices) if self.choices else None


class Routing(RecipeTable):
    """`[routing]`, copied into the manifest."""

    examples: tuple[str, ...] = ()
    negative_examples: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


class Recipe(RecipeTable):
    """The whole file."""

    adapter: RecipeIdentity
    base: RecipeBase = RecipeBase()
    data: Data
    prompt: PromptTable = PromptTable()
    lora: RecipeLora = RecipeLora()
    train: Training
    evaluation: Evaluation = Evaluation()
    generation: RecipeGeneration = RecipeGeneration()
    routing: Routing = Routing()

    @property
    def label_task(self) -> bool:
        """Answers are names out of a closed list."""
        return self.evaluation.metric == "exact_match"


def load_recipe(path: Path) -> Recipe:
    """Parse a recipe; its paths become those from here.

    `like = "OTHER.toml"` at its top: what it does not say is as in that recipe beside it.
    Raises ConfigError that lists everything wrong with it: unknown keys with the nearest
    known one, values out of range, files that are not there.
    """
    raw = _read(path)
    if "like" in raw:
        raw = _completed(raw, path)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"recipe {path}: " + "; ".join(describe_problems(error, Recipe))) from error
    return _with_paths_from_here(recipe, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"recipe {path} is not there") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {error}") from error


def _completed(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Its tables, over those of the recipe that it is like."""
    other = raw.pop("like")
    if not isinstance(other, str) or Path(other).name != other or other == path.name:
        raise ConfigError(f"recipe {path}: like: must be the file name of another recipe beside it")
    whole = _read(path.with_name(other))
    if "like" in whole:
        raise ConfigError(f"recipe {path}: like: {other} is like {whole['like']} itself: name that one")
    for name, table in raw.items():
        known = whole.get(name)
        whole[name] = known | table if isinstance(known, dict) and isinstance(table, dict) else table
    return whole


def _with_paths_from_here(recipe: Recipe, path: Path) -> Recipe:
    splits = {name: path.parent / getattr(recipe.data, name) for name in ("train", "valid", "test")}
    start = path.parent / recipe.lora.start if recipe.lora.start is not None else None
    missing = [f"data.{name}: {file} is not there" for name, file in splits.items() if not file.is_file()]
    if start is not None and not (start / WEIGHTS).is_file():
        missing.append(f"lora.start: {start} holds no {WEIGHTS}")
    if missing:
        raise ConfigError(f"recipe {path}: " + "; ".join(missing))
    data = recipe.data.model_copy(update=splits)
    return recipe.model_copy(update={"data": data, "lora": recipe.lora.model_copy(update={"start": start})})


def describe_problems(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """One line for each problem, in the file's own words; an unknown key comes with the nearest known one."""
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        name = ".".join(place)
        if problem["type"] == "extra_forbidden":
            yield f"unknown key {name}{_nearest(place, model)}"
        elif problem["type"] == "missing":
            yield f"{name} is missing"
        else:
            yield f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _nearest(place: list[str], model: type[BaseModel]) -> str:
    known = list(_table(place[:-1], model).model_fields)
    close = difflib.get_close_matches(place[-1], known, n=1)
    return (
        f" (did you mean {'.'.join([*place[:-1], close[0]])}?)" if close else f" (known: {', '.join(known)})"
    )


def _table(place: list[str], model: type[BaseModel]) -> type[BaseModel]:
    for part in place:
        field = model.model_fields[part].annotation
        if not (isinstance(field, type) and issubclass(field, BaseModel)):
            break
        model = field
    return model
