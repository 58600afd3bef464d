"""Sentence embeddings (all-MiniLM-L6-v2) of a request, its first and its last sentence, beside its n-grams.

Slower than the other two and asked last. Needs the encoder in the model cache, which `models fetch` and the
first start fill; without it this classifier is not asked and its status says why.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from router import hookimpl
from router.classifiers.regression import (
    Regression,
    cut_middle,
    file_digest,
    fit_regression,
    lessons_of,
    whole_first_last,
)
from router.routing import Classifier, Scores
from router.types import AdapterProfile, Request

BACKGROUND = Path(__file__).with_name("background.txt")
HEAD, TAIL = 350, 250  # characters kept of the beginning and the end
MAX_TOKENS = 160
SHORT = 100  # characters; short texts are not padded to the length of long ones
BATCH = 32
PENALTY = 1e-3
TEMPERATURE = 1.0


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
        """Unit vectors, float32 [texts, 384]."""
        import torch

        if not hasattr(self._ready, "done"):
            _use_one_thread()
            self._ready.done = True
        cut = [cut_middle(text, HEAD, TAIL).encode(errors="replace").decode() for text in texts]
        batch = self._tokenizer(
            cut, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(pooled, dim=1).numpy()


def _use_one_thread() -> None:
    """For this thread only: torch remembers the last number set for threads to come, so it is put back."""
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
    restore.start()
    restore.join()


class Embedding(Classifier):
    """Softmax regression on sentence vectors and n-grams, beside a class "none" taught by general requests.

    The parts of a request are encoded apart: in a vector of the whole, a short instruction drowns in a long
    text.
    """

    name = "embedding"
    version = "2"

    def __init__(self) -> None:
        self._encoder: Any = None
        self._model: Regression | None = None
        self._known: dict[str, Any] = {}

    def fingerprint(self) -> str:
        """What a calibration is bound to: the background too."""
        return f"{super().fingerprint()}/{file_digest(BACKGROUND)}"

    def warmup(self) -> None:
        """Load the encoder. Raises ConfigError where it is neither cached nor to be had."""
        from router.models import fetch_encoder

        encoder = Encoder(fetch_encoder())
        encoder(["warm up"])
        self._encoder = encoder

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Encode the examples, those seen before from memory, and train on them."""
        learned = lessons_of(adapters, BACKGROUND)
        if learned is None:
            self._model = None
            return
        if self._encoder is None:
            raise RuntimeError("the encoder is not loaded")
        pieces = [whole_first_last(text) for text in learned.texts]
        wanted = {piece for three in pieces for piece in three}
        known = {text: vector for text, vector in self._known.items() if text in wanted}
        known.update(_encode(self._encoder, wanted - known.keys()))
        self._known = known
        self._model = fit_regression(learned, _join(pieces, known), PENALTY, TEMPERATURE)

    def classify_batch(self, requests: Sequence[Request]) -> list[Scores | None]:
        """Declines where there is no text or no adapter has examples."""
        model, encoder = self._model, self._encoder
        asked = [i for i, r in enumerate(requests) if r.text.strip()]
        answers: list[Scores | None] = [None] * len(requests)
        if model is None or encoder is None or not asked:
            return answers
        pieces = [whole_first_last(requests[i].text) for i in asked]
        vectors = _join(pieces, dict(_encode(encoder, {piece for three in pieces for piece in three})))
        for i, vector in zip(asked, vectors, strict=True):
            answers[i] = model(requests[i].text, vector)
        return answers


def _encode(encoder: Any, texts: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Each text and its vector, short ones in batches of their own."""
    in_order = sorted(texts, key=lambda text: (len(text), text))
    for _, group in groupby(in_order, key=lambda text: len(text) > SHORT):
        alike = list(group)
        for i in range(0, len(alike), BATCH):
            batch = alike[i : i + BATCH]
            yield from zip(batch, encoder(batch), strict=True)


def _join(pieces: Sequence[tuple[str, str, str]], vectors: dict[str, Any]) -> Any:
    """[requests, 3 * 384]: whole, first and last sentence side by side."""
    import numpy as np

    return np.stack([np.concatenate([vectors[piece] for piece in three]) for three in pieces])


@hookimpl
def register_classifiers(register):
    """Asked last, for requests that are still undecided."""
    register(Embedding(), priority=50, timeout_ms=1000)
