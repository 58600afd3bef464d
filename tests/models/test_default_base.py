"""The real default base and encoder, as fetched."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from router.engine.base import Prompt
from router.engine.checkpoint import digest_of, tensors_of
from router.engine.lengths import cut_in_pieces
from router.engine.prompt import PromptEncoder
from router.errors import InvalidRequest
from router.models import fetch_base, fetch_encoder
from router.types import Turn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(fetch_base())


def test_it_answers_and_ends(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(fetch_base(), dtype=torch.float32)
    encoder = PromptEncoder(tokenizer)
    ids = encoder.encode(Prompt(turns=(Turn("user", "What is the capital of France?"),)))
    answer = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)[0, len(ids) :].tolist()
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] in encoder.end_ids
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_its_chat_format(tokenizer):
    turns = (Turn("system", "Be brief"), Turn("user", "hi"))
    text = tokenizer.decode(PromptEncoder(tokenizer).encode(Prompt(turns=turns)))
    assert text == (
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_its_tokens(tokenizer):
    assert tokenizer("a  12 b").tokens() == ["a", "ĠĠ", "1", "2", "Ġb"]
    assert tokenizer("")["input_ids"] == []
    for text in ("naïve 你好 🙂\n\n  x", "def f(x):\n\treturn x % 7"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_pieces_of_long_texts_give_the_same_tokens(tokenizer):
    plain = PromptEncoder(tokenizer)._text._plain
    assert plain.places is not None
    for page in sorted((Path(__file__).parents[2] / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for size in (1, 500):
            first, *others = cut_in_pieces(text, plain.places, size)
            pieces = plain.first(first) + [token for piece in others for token in plain.later(piece)]
            assert pieces == plain.first(text)


@pytest.mark.parametrize("unit", ["7", "word ", "🙂", "x" + " " * 80])
def test_a_megabyte_that_cannot_fit_is_refused_in_a_moment_of_processor_time(tokenizer, unit):
    encoder = PromptEncoder(tokenizer)
    prompt = Prompt(turns=(Turn("user", unit * ((1 << 20) // len(unit.encode()))),))
    started = time.process_time()
    with pytest.raises(InvalidRequest, match=r"at least|without a place to cut"):
        encoder.encode(prompt, 8191)
    assert time.process_time() - started < 0.5


def test_the_adapters_here_were_proven_on_this_base():
    reports = sorted((Path(__file__).parents[2] / "adapters").glob("*/report.json"))
    assert len(reports) >= 7
    digests = {json.loads(report.read_text())["base"]["digest"] for report in reports}
    assert digests == {digest_of(tensors_of(fetch_base()))}


def test_a_second_fetch_reads_no_weights(monkeypatch):
    fetch_base(), fetch_encoder()
    monkeypatch.setattr("hashlib.sha256", None)
    monkeypatch.setattr("router.models.cache._download", None)
    assert fetch_base().is_dir()
    assert (fetch_encoder() / "model.safetensors").is_file()
