"""Sentence embeddings (all-MiniLM-L6-v2): how near a request is to each adapter's examples.

Slower than the other two and asked last. Needs the encoder in the model cache, which `models fetch` and the
first start fill; without it this classifier is not asked and its status says why.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router import hookimpl
from router.routing import Classifier, Scores
from router.routing.texts import ends, read_background
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
HEAD, TAIL = 350, 250  # characters kept of the beginning and the end
MAX_TOKENS = 160
NEAREST = 3
SCALE = 18.0  # turns a difference of cosines into a log-odds
SHOWN = 8
FIT_BATCH = 32


@dataclass(frozen=True, slots=True)
class _Model:
    names: tuple[str, ...]
    examples: Any  # [rows, 384], unit rows of all adapters
    owner: tuple[slice, ...]  # rows of each adapter
    negatives: tuple[Any, ...]  # [rows, 384] for each adapter, background and its negative examples


class Encoder:
    """Mean-pooled unit vectors of texts, on the CPU, with one thread.

    Beside a busy engine two threads take ten times as long as one: each waits for the other's turn.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        fast_half = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.bfloat16 if fast_half else torch.float32
        ).eval()
        self._ready = threading.local()

    def __call__(self, texts: Sequence[str]) -> Any:
        """[texts, 384]."""
        import torch

        if not hasattr(self._ready, "done"):
            _use_one_thread()
            self._ready.done = True
        cut = [ends(text, HEAD, TAIL).encode(errors="replace").decode() for text in texts]
        batch = self._tokenizer(
            cut, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(pooled, dim=1)


def _use_one_thread() -> None:
    """For this thread only: torch remembers the last number set for threads to come, so it is put back."""
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
    restore.start()
    restore.join()


class Embedding(Classifier):
    """Mean of the three highest cosines to an adapter's examples, less that to what is not its business.

    What is not its business: its negative examples and general requests. The differences go through a softmax
    in which "none of them" stands at 0.
    """

    name = "embedding"
    version = "1"

    def __init__(self) -> None:
        self._encoder: Encoder | None = None
        self._model: _Model | None = None
        self._vectors: dict[str, Any] = {}

    def warmup(self) -> None:
        """Load the encoder. Raises ConfigError where it is neither cached nor to be had."""
        from router.models import fetch_encoder

        encoder = Encoder(fetch_encoder())
        encoder(["warm up"])
        self._encoder = encoder

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Encode the examples, those seen before from memory."""
        import torch

        learnable = [a for a in adapters if a.examples]
        if not learnable:
            self._model = None
            return
        background = read_background(BACKGROUND, adapters)
        self._learn({t for a in learnable for t in (*a.examples, *a.negative_examples)} | set(background))
        owner, rows = [], 0
        for adapter in learnable:
            owner.append(slice(rows, rows := rows + len(adapter.examples)))
        self._model = _Model(
            names=tuple(a.name for a in learnable),
            examples=torch.stack([self._vectors[t] for a in learnable for t in a.examples]),
            owner=tuple(owner),
            negatives=tuple(
                torch.stack([self._vectors[t] for t in (*background, *a.negative_examples)])
                for a in learnable
            ),
        )

    def _learn(self, texts: set[str]) -> None:
        if self._encoder is None:
            raise RuntimeError("the encoder is not loaded")
        known = {t: v for t, v in self._vectors.items() if t in texts}
        new = sorted(texts - known.keys(), key=len)
        for i in range(0, len(new), FIT_BATCH):
            part = new[i : i + FIT_BATCH]
            known.update(zip(part, self._encoder(part), strict=True))
        self._vectors = known

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or no adapter has examples."""
        model, encoder = self._model, self._encoder
        asked = [i for i, r in enumerate(requests) if r.text.strip()]
        answers: list[Scores | None] = [None] * len(requests)
        if model is None or encoder is None or not asked:
            return answers
        vectors = encoder([requests[i].text for i in asked])
        for i, vector in zip(asked, vectors, strict=True):
            answers[i] = _scores(model, vector)
        return answers


def _scores(model: _Model, vector: Any) -> Scores:
    near = model.examples @ vector
    lead = [
        _nearest(near[rows]) - _nearest(negative @ vector)
        for rows, negative in zip(model.owner, model.negatives, strict=True)
    ]
    odds = [math.exp(SCALE * d) for d in lead]
    total = 1.0 + sum(odds)
    best = sorted(range(len(odds)), key=lambda k: -odds[k])[:SHOWN]
    return Scores({model.names[k]: odds[k] / total for k in best}, evidence=f"none of them: {1 / total:.2f}")


def _nearest(cosines: Any) -> float:
    return float(cosines.topk(min(NEAREST, len(cosines))).values.mean())


@hookimpl
def register_classifiers(register):
    """Asked last, for requests that are still undecided."""
    register(Embedding(), priority=50, timeout_ms=1000)
