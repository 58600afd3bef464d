"""The sentence encoders: one of each for all classifiers, with the vectors of recent texts.

all-MiniLM-L6-v2 reads English. A LoRA of it (`encoder_lora/`) moves requests for one adapter together, for
adapters that nobody has seen: recipes/routing/encoder.py trained it on the train parts of BANKING77
(Casanueva et al. 2020, CC BY 4.0), CLINC150 (Larson et al. 2019, CC BY 3.0), HWU64 (Liu et al. 2019, CC BY
4.0) and SNIPS (Coucke et al. 2018, CC0). multilingual-e5-small reads some hundred languages and is slower.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.classifiers.caches import VectorCache, in_parts
from router.errors import ConfigError
from router.models.base import (
    DEFAULT_ENCODER,
    MULTILINGUAL,
    fetch_encoder,
    fetch_multilingual,
    has_encoder,
)
from router.models.cache import models_dir
from router.models.importing import import_transformers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.models.bert import Bert

SIZE = 384
HEAD, TAIL = 350, 250  # characters kept of the beginning and the end
MAX_TOKENS = 160
LONGEST_TEXT = 256  # tokens of a text that is read whole: the limit that the model's makers give
SHORT = 100  # characters; short texts are not padded to the length of long ones
BATCH = 32
LEARNED = 64  # texts that are learned from, between two times that their vectors are kept
MOST_LEARNED = 100_000  # vectors of such texts in the cache folder, 80 MB
PREFIX = "query: "  # of multilingual-e5-small, for texts that are compared with each other
WEIGHTS = "adapter_model.safetensors"
LORA = Path(__file__).with_name("encoder_lora")  # of the default encoder, in PEFT's format
KEPT = 1024  # texts whose vectors are kept: a request is read once however many classifiers ask

if TYPE_CHECKING:
    Vector = NDArray[np.float32]


class SentenceEncoder:
    """Mean-pooled unit vectors of texts, on the CPU, with one thread.

    Beside a busy engine two threads take ten times as long as one: each waits for the other's turn.
    """

    def __init__(self, folder: Path, prefix: str = "", lora: Path | None = None) -> None:
        """`prefix` stands before every text: what the model was trained with. The `lora` is merged into the
        weights, so that it costs no time."""
        import torch

        import_transformers()
        from transformers import AutoTokenizer

        from router.models.bert import Bert

        able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast_half = able.get("avx512_bf16", False)
        self._folder = folder
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = Bert(folder)
        if lora is not None:
            _merge(self._model, lora)
        self._model.to(torch.bfloat16 if fast_half else torch.float32)
        self._ready, self._prefix = threading.local(), prefix

    def __call__(self, texts: Sequence[str]) -> Any:
        """Unit vectors of what routing reads of texts, float32 [texts, 384]."""
        from router.classifiers.texts import cut_middle

        cut = [
            self._prefix + cut_middle(text, HEAD, TAIL).encode(errors="replace").decode() for text in texts
        ]
        return self._pooled(
            self._tokenizer(cut, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        )

    @cached_property
    def _whole(self) -> Any:
        """A tokenizer that never cuts. Whether one cuts is a state of it, which threads would share."""
        import_transformers()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder, local_files_only=True)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts, with those that begin and end every text."""
        whole = [self._prefix + text.encode(errors="replace").decode() for text in texts]
        ids: list[list[int]] = self._whole(whole, truncation=False, verbose=False)["input_ids"]
        return ids

    def vectors(self, tokens: Sequence[Sequence[int]]) -> Any:
        """Unit vectors of whole texts, float32 [texts, 384]."""
        rows = [list(row) for row in tokens]
        return self._pooled(self._tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt"))

    def _pooled(self, batch: Any) -> Any:
        import torch

        if not hasattr(self._ready, "done"):
            _use_one_thread()
            self._ready.done = True
        with torch.inference_mode():
            hidden = self._model(batch["input_ids"], batch["attention_mask"]).float()
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(pooled, dim=1).numpy()


def _merge(model: Bert, lora: Path) -> None:
    """Add the products of a PEFT folder's matrices to the weights of the modules that they are for."""
    from safetensors.torch import load_file

    config = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    matrices = {name: tensor.float() for name, tensor in load_file(lora / WEIGHTS).items()}
    for name, down in matrices.items():
        module, end, _ = name.partition(".lora_A.weight")
        if end:
            change = scale * (matrices[f"{module}.lora_B.weight"] @ down)
            model.add(module.removeprefix("base_model.model."), change)


def _use_one_thread() -> None:
    """For this thread only: torch remembers the last number set for threads to come, so it is put back."""
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
    restore.start()
    restore.join()


class WholeTexts:
    """The default encoder for whole texts: `router.ports.TextEncoder`. It is loaded when it is first used."""

    longest, size = LONGEST_TEXT, SIZE

    def __init__(self) -> None:
        self._reader = sentence_reader()
        self.name = self._reader.maker.partition("/")[0]

    def load(self) -> None:
        """Load it, unless it is loaded. Raises ConfigError where it is not on this machine."""
        if not has_encoder():
            raise ConfigError(f"{DEFAULT_ENCODER} is not on this machine")
        self._reader.warmup()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        encoder: SentenceEncoder = self._reader.encoder
        return encoder.tokens(texts)

    def vectors(self, tokens: Sequence[Sequence[int]]) -> Any:
        """Unit vectors, float32 [texts, size]."""
        encoder: SentenceEncoder = self._reader.encoder
        return encoder.vectors(tokens)


class Reader:
    """Vectors of texts by one encoder, which is loaded when it is first asked. Of many threads.

    Of texts that are learned from, vectors stay in `kept`; of requests, nothing outlives the process. `maker`
    names the encoder and how it reads.
    """

    def __init__(
        self,
        load: Callable[[], Callable[[Sequence[str]], Any]],
        kept: VectorCache | None = None,
        maker: str = "",
    ) -> None:
        self._load, self._kept, self.maker = load, kept, maker
        self._encoder: Callable[[Sequence[str]], Any] | None = None
        self._lock, self._loading, self._learning = threading.Lock(), threading.Lock(), threading.Lock()
        self._lately: OrderedDict[str, Vector] = OrderedDict()
        self._reading: dict[str, threading.Event] = {}

    def warmup(self) -> None:
        """Load the encoder. Raises ConfigError where it is neither cached nor to be had."""
        with self._loading:
            if self._encoder is None:
                encoder = self._load()
                encoder(["warm up"])
                self._encoder = encoder

    @property
    def encoder(self) -> Any:
        """The encoder. Raises RuntimeError where it is not loaded."""
        if self._encoder is None:
            raise RuntimeError("the encoder is not loaded")
        return self._encoder

    def lately(self, texts: Collection[str]) -> dict[str, Vector]:
        """Vectors of requests' texts: who asks for what another thread is reading waits for that."""
        found: dict[str, Vector] = {}
        for text, vector in self._read_once(texts):
            found[text] = vector
        return found

    def _read_once(self, texts: Collection[str]) -> Iterator[tuple[str, Vector]]:
        mine, theirs = self._claim(texts)
        try:
            made = dict(self.each(mine))
            with self._lock:
                self._lately.update(made)
                while len(self._lately) > KEPT:
                    self._lately.popitem(last=False)
        finally:
            with self._lock:
                for text in mine:
                    self._reading.pop(text).set()
        yield from made.items()
        for text, done in theirs.items():
            if done is not None:
                done.wait()
            with self._lock:
                vector = self._lately.get(text)
            yield text, next(iter(self.each([text])))[1] if vector is None else vector

    def _claim(self, texts: Collection[str]) -> tuple[list[str], dict[str, threading.Event | None]]:
        """Texts to read now, and those that are there or will be when the event is set."""
        mine: list[str] = []
        theirs: dict[str, threading.Event | None] = {}
        with self._lock:
            for text in dict.fromkeys(texts):
                if text in self._lately:
                    self._lately.move_to_end(text)
                    theirs[text] = None
                elif text in self._reading:
                    theirs[text] = self._reading[text]
                else:
                    self._reading[text] = threading.Event()
                    mine.append(text)
        return mine, theirs

    def each(self, texts: Iterable[str]) -> Iterator[tuple[str, Vector]]:
        """Each text and its vector, float32 [384], short ones in batches of their own; nothing is kept."""
        encoder = self.encoder
        in_order = sorted(texts, key=lambda text: (len(text), text))
        for _, group in groupby(in_order, key=lambda text: len(text) > SHORT):
            alike = list(group)
            for i in range(0, len(alike), BATCH):
                batch = alike[i : i + BATCH]
                yield from zip(batch, encoder(batch), strict=True)

    def learned(self, texts: Iterable[str]) -> Iterator[tuple[str, Vector]]:
        """Like `each`, for texts that are learned from at every start: nothing is read that was before.

        Where two threads learn from the same texts, one reads a part and the other finds it.
        """
        if self._kept is None:
            yield from self.each(texts)
            return
        for part in in_parts(sorted(texts, key=lambda text: (len(text), text)), LEARNED):
            with self._learning:
                vectors = self._learned(part, self._kept)
            yield from vectors.items()

    def _learned(self, texts: Sequence[str], kept: VectorCache) -> dict[str, Vector]:
        keys = {text: kept.key([text]) for text in texts}
        there = kept.find(keys.values())
        made = dict(self.each(text for text in texts if keys[text] not in there))
        if made:
            kept.add({keys[text]: vector[None] for text, vector in made.items()}, MOST_LEARNED)
        return {text: made[text] if text in made else there[keys[text]][0] for text in texts}


@cache
def sentence_reader() -> Reader:
    """The process's own of the default encoder, with its LoRA."""
    trained = hashlib.sha256((LORA / WEIGHTS).read_bytes()).hexdigest()[:8]
    maker = f"{DEFAULT_ENCODER}+{trained}"
    return _reader(lambda: SentenceEncoder(fetch_encoder(), lora=LORA), maker, "sentences.sqlite")


@cache
def multilingual_reader() -> Reader:
    """The process's own of the multilingual encoder."""
    return _reader(
        lambda: SentenceEncoder(fetch_multilingual(), PREFIX),
        f"{MULTILINGUAL}/{PREFIX}",
        "multilingual.sqlite",
    )


def _reader(load: Callable[[], SentenceEncoder], maker: str, file: str) -> Reader:
    """What it learned from is kept beside the models, in the user's cache folder."""
    folder = models_dir()
    maker = f"{maker}/{HEAD}/{TAIL}/{MAX_TOKENS}"
    writable = folder.is_dir() and os.access(folder, os.W_OK)
    kept = VectorCache(folder / file, maker) if writable else None
    return Reader(load, kept, maker)
