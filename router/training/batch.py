"""Encoded examples and the batches made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one row: the rendered prompt, and the answer up to its end-of-turn token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows cut into the beginning that all prompts share and the rest, padded on the right.

    prefix [1, P] (P may be 0), tokens [B, T] and targets [B, T]: the next token where it
    belongs to the answer, IGNORED elsewhere.
    """

    prefix: torch.Tensor
    tokens: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(self.prefix.to(device), self.tokens.to(device), self.targets.to(device))


def collate(examples: Sequence[Example]) -> Batch:
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
    return Batch(torch.tensor([examples[0].prompt[:shared]], dtype=torch.long), tokens, targets)
