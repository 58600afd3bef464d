"""One encoder for all classifiers: who reads what, and how often."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.classifiers.caches import VectorCache
from router.models import encoder
from router.models.encoder import KEPT, LEARNED, LONGEST_TEXT, Reader, WholeTexts

torch = pytest.importorskip("torch")


class Lengths:
    """A text's vector is its length; `gate` holds it up."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, texts: Sequence[str]) -> Any:
        self.read += texts
        self.entered.set()
        assert self.gate.wait(10)
        if "bad" in texts:
            raise ValueError("bad")
        return np.array([[len(text)] for text in texts], np.float32)


@pytest.fixture
def lengths():
    return Lengths()


@pytest.fixture
def reader(lengths):
    made = Reader(lambda: lengths)
    made.warmup()
    lengths.read.clear()
    return made


def test_a_request_is_read_once(reader, lengths):
    assert reader.lately(["a", "bbb", "a"])["bbb"] == [3.0]
    assert reader.lately(["bbb", "cc"]).keys() == {"bbb", "cc"}
    assert lengths.read == ["a", "bbb", "cc"]


def test_what_another_thread_reads_is_waited_for(reader, lengths):
    lengths.gate.clear()
    lengths.entered.clear()
    found: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: found.append(reader.lately(["same"]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert lengths.entered.wait(10)
    lengths.gate.set()
    for thread in threads:
        thread.join(10)
    assert [one["same"].tolist() for one in found] == [[4.0]] * 3
    assert lengths.read == ["same"]


def test_a_failure_is_the_askers_own_and_the_next_may_try(reader, lengths):
    with pytest.raises(ValueError, match="bad"):
        reader.lately(["bad"])
    with pytest.raises(ValueError, match="bad"):
        reader.lately(["bad"])
    assert lengths.read == ["bad", "bad"]


def test_only_so_many_are_kept(reader, lengths):
    reader.lately([str(i) for i in range(KEPT + 10)])
    lengths.read.clear()
    reader.lately([str(KEPT + 9)])
    assert lengths.read == []
    reader.lately(["0"])
    assert lengths.read == ["0"]


def test_what_is_learned_from_outlives_the_process_and_requests_do_not(lengths, tmp_path):
    def made() -> Reader:
        reader = Reader(lambda: lengths, VectorCache(tmp_path / "v.sqlite", "lengths"))
        reader.warmup()
        lengths.read.clear()
        return reader

    assert dict(made().learned(["ab", "abc", "ab"]))["abc"] == [3.0]
    again = made()
    assert dict(again.learned(["abcd", "ab", "abc"])).keys() == {"ab", "abc", "abcd"}
    assert lengths.read == ["abcd"]
    again.lately(["a request"])
    third = made()
    third.lately(["a request"])
    assert lengths.read == ["a request"]


def test_two_threads_that_learn_the_same_read_each_text_once(lengths, tmp_path):
    reader = Reader(lambda: lengths, VectorCache(tmp_path / "v.sqlite", "lengths"))
    reader.warmup()
    lengths.read.clear()
    texts = [f"text {i}" for i in range(3 * LEARNED)]
    found: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: found.append(dict(reader.learned(texts)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [one.keys() for one in found] == [set(texts)] * 2
    assert sorted(lengths.read) == sorted(texts)


def test_it_is_loaded_once_and_not_before_it_is_asked(lengths):
    loads: list[int] = []

    def load() -> Lengths:
        loads.append(1)
        return lengths

    made = Reader(load)
    with pytest.raises(RuntimeError, match="not loaded"):
        made.lately(["a"])
    made.warmup()
    made.warmup()
    assert loads == [1]


def test_one_thread_is_for_the_calling_thread_only():
    seen: dict[str, int] = {}

    def inside() -> None:
        encoder._use_one_thread()
        seen["inside"] = torch.get_num_threads()

    def run(target: Callable[[], Any]) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(inside)
        run(lambda: seen.update(later=torch.get_num_threads()))
        assert (seen["inside"], seen["later"], torch.get_num_threads()) == (1, 2, 2)
    finally:
        torch.set_num_threads(before)


ENCODER = """
import sys
from pathlib import Path
from router.models.encoder import SentenceEncoder
print(SentenceEncoder(Path(sys.argv[1]))(["a b"]).shape)
print(sorted({"transformers.modeling_utils", "torch._dynamo", "sympy", "scipy"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_the_encoder_imports_no_classes_of_models(tmp_path: Path) -> None:
    """They took a start a second."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]").save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=4, **sizes)).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", ENCODER, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["(1, 32)", "[]"], done.stderr


@pytest.mark.slow
def test_the_encoder_reads_whole_texts() -> None:
    encoder = WholeTexts()
    encoder.load()
    middle = "word " * 100 + "{} " + "word " * 100
    texts = [
        middle.format("cat"),
        middle.format("finance"),
        "A cat sat.",
        "A kitten was sitting.",
        "Bonds fell.",
    ]
    tokens = encoder.tokens(texts)
    assert [len(row) for row in tokens][:2] == [203, 203]
    assert max(map(len, tokens)) < LONGEST_TEXT
    rows = encoder.vectors(tokens)
    assert rows.shape == (5, encoder.size)
    assert not np.array_equal(rows[0], rows[1]), "what is in the middle was cut"
    assert rows[2] @ rows[3] > rows[2] @ rows[4]
    alone = encoder.vectors([tokens[2]])
    assert np.allclose(alone[0], rows[2], atol=0.02)


@pytest.mark.slow
def test_whole_texts_stay_whole_while_routing_cuts_others() -> None:
    """Whether a tokenizer cuts is a state of it: one that both shared cut one whole text in 150."""
    encoder = WholeTexts()
    encoder.load()
    text, stop = "word " * 240, threading.Event()
    cut = encoder._reader.encoder._tokenizer

    def route() -> None:
        while not stop.is_set():
            cut([text], padding=True, truncation=True, max_length=160)

    thread = threading.Thread(target=route)
    thread.start()
    try:
        lengths = {len(encoder.tokens([text])[0]) for _ in range(600)}
    finally:
        stop.set()
        thread.join()
    assert lengths == {242}
