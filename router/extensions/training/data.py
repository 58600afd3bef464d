"""Rows of data files: read, kept apart by split, as tokens, in batches, and judged under teacher forcing.

Prompts are rendered by the code that renders them when serving, so that there is no skew.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from router.engine.base import Prompt, tokens_before
from router.engine.prompt import PromptEncoder
from router.errors import ConfigError
from router.extensions.training.recipe import Data
from router.extensions.training.rows import prompt_key, read_json_lines
from router.types import PromptTemplate, Turn

Schema = tuple[tuple[str, tuple[str, ...]], ...]  # tables and their columns


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One example and where it stands."""

    prompt: str
    response: str
    place: str  # FILE:LINE
    bare: str = ""  # the input without its instruction, where the file has it as `x`
    schema: Schema = ()  # of the database that the row asks about, where the file has it as `schema`


@dataclass(frozen=True, slots=True)
class Splits:
    """The three splits, checked."""

    train: tuple[TrainingRow, ...]
    valid: tuple[TrainingRow, ...]
    test: tuple[TrainingRow, ...]


def load_splits(data: Data) -> Splits:
    """Read the three files. Raises ConfigError for a bad row, an empty split or a leaked row."""
    splits = {name: tuple(read_rows(getattr(data, name))) for name in ("train", "valid", "test")}
    for name, rows in splits.items():
        if not rows:
            raise ConfigError(f"data.{name}: {getattr(data, name)} holds no row")
    refuse_leaks(splits)
    return Splits(**splits)


def read_rows(path: Path) -> Iterator[TrainingRow]:
    """Rows of a JSON-lines file, gzip by its suffix; unknown fields are left alone."""
    for place, value in read_json_lines(path):
        prompt, response = text_of(value, "prompt", place), text_of(value, "response", place)
        yield TrainingRow(
            prompt, response, place, str(value.get("x", "")), _schema(value.get("schema", {}), place)
        )


def text_of(value: Any, name: str, place: str) -> str:
    """The field `name`, which must hold text. Raises ConfigError naming the place."""
    text = value.get(name) if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place} has no text in {name!r}")
    return text


def _schema(value: Any, place: str) -> Schema:
    tables: list[Any] = list(value.values()) if isinstance(value, dict) else [None]
    for columns in tables:
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise ConfigError(f"{place}: 'schema' must be an object of tables with lists of column names")
    return tuple((table, tuple(columns)) for table, columns in value.items())


def refuse_leaks(splits: Mapping[str, Sequence[TrainingRow]]) -> None:
    """Refuse a validation or test row whose prompt stands in an earlier split too.

    Prompts are compared without case and with white space folded.
    """
    seen: dict[str, str] = {}
    for rows in splits.values():
        for row in rows:
            if other := seen.get(prompt_key(row.prompt)):
                raise ConfigError(
                    f"{row.place} also stands in {other}: {row.prompt[:80]!r}; remove one of them"
                )
        for row in rows:
            seen.setdefault(prompt_key(row.prompt), row.place)


IGNORED = -100  # a target that does not count
WINDOW = 16  # batches that are sorted by length together


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one row: the rendered prompt, and the answer up to its end-of-turn token.

    `text` is the question, of which templates make constraints.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Rendering:
    """An adapter's prompt template over a base's tokenizer."""

    tokenizer: Any
    encoder: PromptEncoder
    template: PromptTemplate

    @classmethod
    def of(cls, tokenizer: Any, template: PromptTemplate) -> Rendering:
        """Wrap a transformers tokenizer."""
        return cls(tokenizer, PromptEncoder(tokenizer), template)

    def example(self, row: TrainingRow, before: Sequence[TrainingRow] = ()) -> Example:
        """A row with its answer; rows in `before` are turns of the same conversation, answered."""
        turns: list[Turn] = []
        for shown in before:
            turns += [Turn("user", shown.prompt), Turn("assistant", shown.response)]
        prompt = Prompt(turns=(*turns, Turn("user", row.prompt)), template=self.template)
        tokens, length = self.encoder.encode_example(prompt, row.response)
        return Example(tuple(tokens[:length]), tuple(tokens[length:]), row.prompt)

    def examples(self, rows: Iterable[TrainingRow]) -> list[Example]:
        """Every row on its own."""
        return [self.example(row) for row in rows]

    def prompt(self, text: str) -> tuple[int, ...]:
        """A question on its own, ready to be answered."""
        return tuple(self.encoder.encode(Prompt(turns=(Turn("user", text),), template=self.template)))

    def answer(self, text: str) -> tuple[int, ...]:
        """Tokens of an answer with its end."""
        return self.example(TrainingRow("?", text, "")).answer

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        return sorted(self.encoder.end_ids)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens of an answer as text."""
        decoded: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return decoded.strip()


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Rows cut into the beginning that all prompts share and the rest, padded on the right.

    prefix [1, P] (P may be 0), tokens [B, T] and targets [B, T]: the next token where it
    belongs to the answer, IGNORED elsewhere.
    """

    prefix: torch.Tensor
    tokens: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> TrainingBatch:
        """The same batch on `device`."""
        return TrainingBatch(self.prefix.to(device), self.tokens.to(device), self.targets.to(device))

    def whole(self) -> TrainingBatch:
        """The same rows without a prefix."""
        moved = self.prefix.expand(len(self.tokens), -1)
        none = torch.full_like(moved, IGNORED)
        return TrainingBatch(
            self.prefix[:, :0], torch.cat((moved, self.tokens), 1), torch.cat((none, self.targets), 1)
        )


def collate(examples: Sequence[Example]) -> TrainingBatch:
    """A batch; at least one token of every prompt stays out of the shared prefix."""
    columns = zip(*(example.prompt for example in examples), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    shared = min(shared, min(len(example.prompt) for example in examples) - 1)
    width = max(map(len, examples)) - shared - 1
    tokens = torch.zeros(len(examples), width, dtype=torch.long)
    targets = torch.full((len(examples), width), IGNORED)
    for row, example in enumerate(examples):
        rest = (example.prompt + example.answer)[shared:]
        tokens[row, : len(rest) - 1] = torch.tensor(rest[:-1])
        targets[row, len(example.prompt) - shared - 1 : len(rest) - 1] = torch.tensor(example.answer)
    return TrainingBatch(torch.tensor([examples[0].prompt[:shared]], dtype=torch.long), tokens, targets)


class AnswerModel:
    """Runs a causal LM over batches and looks at answer tokens only.

    Two savings, both exact: the output matrix is applied at answer positions alone, and the
    beginning that all rows of a batch share goes through the model once, its keys and values
    expanded to every row (gradients flow back through them). An activated LoRA acts as when it serves, from
    the last invocation in each prompt on, and there is no shared beginning then.
    """

    def __init__(self, model: Any) -> None:
        """`model` is a transformers causal LM or a PEFT model around one."""
        self.model = model
        self._wanted: torch.Tensor | None = None  # places to predict at; None between batches: all
        config = getattr(model, "active_peft_config", None)
        self._invocation = tuple(getattr(config, "alora_invocation_tokens", None) or ())
        # With the LoRA layers in it, without what PEFT does around each call.
        self._base = base = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = base.get_output_embeddings()
        self._hook = head.register_forward_pre_hook(
            lambda _, inputs: inputs if self._wanted is None else (inputs[0][self._wanted],)
        )
        parameters = inspect.signature(base.forward).parameters
        # Renamed in transformers 5.
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"

    def close(self) -> None:
        """Give the model its plain output layer back."""
        self._hook.remove()

    def logits(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 logits [N, V] at the N answer positions of the batch, and the N tokens wanted.

        Raises NotActivated where an activated LoRA would not act on a prompt.
        """
        if self._invocation:
            return self._activated_logits(batch)
        extra: dict[str, Any] = {"use_cache": False}
        if batch.prefix.shape[1]:
            cache = DynamicCache()
            with self._predicting(torch.zeros_like(batch.prefix, dtype=torch.bool)):
                self._base(input_ids=batch.prefix, use_cache=True, **{self._cache_name: cache})
            cache.batch_repeat_interleave(batch.tokens.shape[0])
            extra = {"use_cache": True, self._cache_name: cache}
        with self._predicting(batch.targets != IGNORED) as wanted:
            logits = self._base(input_ids=batch.tokens, **extra).logits
        return logits.float(), batch.targets[wanted]

    def _activated_logits(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """PEFT counts from the end of the padded row."""
        batch = batch.whole()
        width = batch.tokens.shape[1]
        offsets = [width - tokens_before(prompt, self._invocation) for prompt in _prompts(batch)]
        with self._predicting(batch.targets != IGNORED) as wanted:
            logits = self.model(input_ids=batch.tokens, use_cache=False, alora_offsets=offsets).logits
        return logits.float(), batch.targets[wanted]

    @contextmanager
    def _predicting(self, wanted: torch.Tensor) -> Iterator[torch.Tensor]:
        """The output matrix is applied at these places alone."""
        self._wanted = wanted
        try:
            yield wanted
        finally:
            self._wanted = None

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        """Mean negative log-likelihood in nats per answer token."""
        return functional.cross_entropy(*self.logits(batch))

    @torch.no_grad()
    def judge(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each row [B]: nats of its answer, its answer's tokens, and whether greedy decoding gives it."""
        logits, wanted = self.logits(batch)
        mask = batch.targets != IGNORED
        nats = torch.zeros(mask.shape, device=logits.device)
        nats[mask] = functional.cross_entropy(logits, wanted, reduction="none")
        hit = torch.ones_like(mask)
        hit[mask] = logits.argmax(-1) == wanted
        return nats.sum(1), mask.sum(1), hit.all(1)


def _prompts(batch: TrainingBatch) -> Iterator[list[int]]:
    """The prompt of each row of a batch without a prefix: it ends where the first target is predicted."""
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        yield tokens[: 1 + next(place for place, target in enumerate(targets) if target != IGNORED)]


def rows_of_step(step: int, lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    """Indices of the rows of step 1, 2, …; `lengths` are the rows' tokens.

    A function of lengths and seed alone, so that a resumed run sees the same.

    Every epoch is a new permutation, cut into windows; rows of like length inside a window go together,
    so that little is spent on padding, and the batches of a window come in random order. Rows that do
    not fill a batch at the end of an epoch wait for the next one.
    """
    epoch, place = divmod(step - 1, max(1, len(lengths) // batch))
    return _batches(epoch, tuple(lengths), batch, seed)[place]


@lru_cache(maxsize=2)
def _batches(epoch: int, lengths: tuple[int, ...], batch: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    full = order[: max(1, len(order) // batch) * batch]
    batches: list[list[int]] = []
    for start in range(0, len(full), WINDOW * batch):
        window = sorted(full[start : start + WINDOW * batch], key=lengths.__getitem__)
        cut = [window[place : place + batch] for place in range(0, len(window), batch)]
        shuffled: list[int] = torch.randperm(len(cut), generator=generator).tolist()
        batches += [cut[place] for place in shuffled]
    return batches
