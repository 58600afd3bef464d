"""`python -m benchmarks.constraint_libraries`: libraries for constrained decoding, on the default base.

Measures those that are installed (`pip install xgrammar outlines-core`): processor time to read the tokens
once, to compile a JSON Schema, and for the mask before each token of an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks import report
from router.models import resolve_model

WIDTH, ENDS = 49152, [2, 0]
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["cat", "dog"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    }
)
ANSWER = '{"name": "Bob Miller", "age": 12, "kind": "cat"}'
Steps = Iterator[str]  # yields the name of what was just done


def llguidance(tokenizer: Any) -> Steps:
    """MIT; no dependencies; one wheel for every Python from 3.10 on."""
    from llguidance import LLMatcher, LLTokenizer

    tokens = LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=WIDTH, eos_token=ENDS)
    yield "read"
    spaced: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_json_schema(SCHEMA, None, spaced))
    yield "compile"
    for token in tokenizer.encode(ANSWER):
        matcher.compute_bitmask()
        yield "mask"
        if not matcher.consume_token(token):
            raise RuntimeError(matcher.get_error())


def xgrammar(tokenizer: Any) -> Steps:
    """Apache-2.0; needs torch, transformers, tvm-ffi and, on Linux, triton."""
    import xgrammar as x

    compiler = x.GrammarCompiler(
        x.TokenizerInfo.from_huggingface(tokenizer, vocab_size=WIDTH), max_threads=1, cache_enabled=False
    )
    yield "read"
    matcher = x.GrammarMatcher(
        compiler.compile_json_schema(SCHEMA, any_whitespace=False, separators=(", ", ": "))
    )
    yield "compile"
    mask = x.allocate_token_bitmask(1, WIDTH)
    for token in tokenizer.encode(ANSWER):
        matcher.fill_next_token_bitmask(mask)
        yield "mask"
        if not matcher.accept_token(token):
            raise RuntimeError("refused")


def outlines_core(tokenizer: Any) -> Steps:
    """Apache-2.0; no dependencies; JSON Schema and expressions only."""
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    texts: dict[str, list[int]] = {}
    for token in set(range(len(tokenizer))) - set(tokenizer.all_special_ids):
        texts.setdefault(tokenizer.decode([token]), []).append(token)
    vocabulary = Vocabulary(ENDS[0], texts)
    yield "read"
    guide = Guide(Index(build_regex_from_schema(SCHEMA), vocabulary))
    yield "compile"
    mask = np.zeros(WIDTH // 32, np.int32)
    for token in tokenizer.encode(ANSWER):
        guide.write_mask_into(mask.ctypes.data, mask.size, 4)
        yield "mask"
        guide.advance(token)


def measured(library: Callable[[Any], Steps], tokenizer: Any, rounds: int = 5) -> dict[str, Any]:
    """Medians over some rounds, the worst mask beside them."""
    times: dict[str, list[float]] = {"read": [], "compile": [], "mask": []}
    for _ in range(rounds):
        began = time.process_time()
        for name in library(tokenizer):
            times[name].append(time.process_time() - began)
            began = time.process_time()
    return {
        "library": library.__name__,
        "vocabulary, s": median(times["read"]),
        "compile, ms": 1e3 * median(times["compile"]),
        "mask, µs": 1e6 * median(times["mask"]),
        "worst mask, µs": 1e6 * max(times["mask"]),
    }


def main() -> None:
    """Print the table."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    rows = []
    for library in (llguidance, xgrammar, outlines_core):
        try:
            rows.append(measured(library, tokenizer))
        except ImportError as error:
            print(f"{library.__name__} is left out: {error}")
    print(report.hardware())
    print(report.versions("llguidance", "xgrammar", "outlines-core"))
    print(report.table(rows))


if __name__ == "__main__":
    main()
