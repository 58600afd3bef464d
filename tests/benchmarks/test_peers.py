"""How peers are asked: loads that take too long, llama.cpp's server, and processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from benchmarks import llama_cpp, llama_gguf
from benchmarks.answering import NEW_TOKENS, REQUESTS, dealt
from benchmarks.contestants import ROOT, Entry, Field, Missing, ours
from benchmarks.larger_loads import many_requests
from benchmarks.larger_shapes import config_of
from benchmarks.sections import Section, known, measure
from benchmarks.speculation_page import ADAPTERS, FASTER, ratio_rows, text
from tests.benchmarks.test_larger import TINY

SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({"status": "ok"} if self.path == "/health" else [{"id": 0}, {"id": 1}])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chosen = [lora["id"] for lora in asked["lora"]]
        self.say({"tokens": [*chosen, *asked["prompt"]][:asked["n_predict"]]})

    def say(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass

at = sys.argv.index("--port") + 1
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[at])), Handler).serve_forever()
"""


def asked_of(first: float, step: float) -> tuple[list[int], Any]:
    """A contestant that takes so many seconds for prompts and for each further token."""
    tokens: list[int] = []

    def ask(work: Mapping[str, Any]) -> dict[str, Any]:
        tokens.append(work["new"])
        return {"seconds": first + step * (work["new"] - 1), "tokens": work["new"] * len(work["prompts"])}

    return tokens, ask


def test_a_load_that_takes_minutes_is_computed_from_its_first_tokens() -> None:
    tokens, ask = asked_of(20.0, 2.0)
    found = many_requests(ask, 5000, 0, rounds=2)
    assert tokens == [9, 1]
    whole = REQUESTS * NEW_TOKENS / (20.0 + 63 * 2.0)
    assert found == {"speed": pytest.approx(whole), "shortened": True}


def test_a_load_that_is_fast_enough_is_measured_whole() -> None:
    tokens, ask = asked_of(1.0, 0.1)
    assert "shortened" not in many_requests(ask, 5000, 0, rounds=2)
    assert tokens == [9, NEW_TOKENS, NEW_TOKENS]


def test_prompts_have_the_adapters_in_turn_or_the_one_that_is_named() -> None:
    prompts = [[1], [2], [3]]
    assert dealt({"prompts": prompts}, 2) == [0, 1, 0]
    assert dealt({"prompts": prompts, "adapters": 1}, 2) == [0, 0, 0]
    assert dealt({"prompts": prompts, "adapters": 8}, 0) == [None, None, None]
    assert dealt({"prompts": prompts, "adapter": 5}, 0) == [5, 5, 5]


@pytest.mark.slow
def test_llama_server_is_asked_in_ids(tmp_path: Path) -> None:
    fake = tmp_path / "server.py"
    fake.write_text(SERVER)
    command = ours("peer_llama", sys.executable, str(fake), "--threads", "3")
    with Field() as field:
        about = field.start(Entry("llama.cpp", command))
        assert about["threads"] == "3"
        work = {"prompts": [[7, 8], [9]], "new": 3, "adapters": 2}
        assert field.ask("llama.cpp", work)["tokens"] == 5
        found = field.ask("llama.cpp", {**work, "one by one": True, "adapter": 1})
        assert found["answers"] == [[1, 7, 8], [1, 9]]
        assert all(whole > 0 for whole in found["whole"])


@pytest.mark.slow
def test_contestants_and_their_children_end_with_the_benchmark() -> None:
    contestant = "echo $$; sleep 60 & wait"
    benchmark = (
        "import time\n"
        "from benchmarks.contestants import Contestant, Entry\n"
        f"kept = Contestant(Entry('a', ['sh', '-c', {contestant!r}]))\n"
        "print(kept.about, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", benchmark], stdout=subprocess.PIPE, cwd=ROOT)
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        processes = [child, *child.children()]
        parent.kill()
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive


def test_an_adapter_for_llama_cpp_has_its_values_and_scale(tmp_path: Path) -> None:
    import gguf

    (tmp_path / "config.json").write_text(json.dumps(config_of(TINY)))
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(size, np.float32) for size in ((2, 8), (16, 2)))
    site = "base_model.model.model.layers.1.self_attn.q_proj"
    save_file(
        {f"{site}.lora_A.weight": a, f"{site}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors"
    )
    read = gguf.GGUFReader(llama_gguf.adapter(tmp_path, tmp_path, tmp_path / "x.gguf"))
    values = {tensor.name: tensor.data for tensor in read.tensors}
    assert read.get_field("adapter.lora.alpha").contents() == 16
    assert np.array_equal(values["blk.1.attn_q.weight.lora_a"], a)
    assert np.array_equal(values["blk.1.attn_q.weight.lora_b"][:4], b[[0, 2, 1, 3]])


def test_a_section_that_cannot_be_measured_leaves_a_line_and_the_others(tmp_path: Path) -> None:
    def missing() -> Section:
        raise Missing("no compiler")

    page = tmp_path / "x.md"
    for work in ({"a": lambda: Section({"value": 1})}, {"b": missing}):
        measure(work, page, lambda sections: " ".join(f"{k}={v.skipped}" for k, v in sections.items()))
    assert page.read_text() == "a= b=no compiler"
    assert known(page)["a"].facts == {"value": 1}


def test_the_page_of_speculation_compares_each_way_with_the_one_without() -> None:
    means = {"tokens": 5.0, "ms": 30.0, "behind": 20.0, "same": 1.0}
    ways = {
        "off": dict.fromkeys(ADAPTERS, means),
        "ngram": dict.fromkeys(ADAPTERS, means | {"ms": 20.0, "behind": 5.0}),
    }
    facts = {"ways": ways, "requests": 16, "split": "test"}
    rows = ratio_rows(
        {"free": [{"adapter": name, FASTER: 3.0} for name in ADAPTERS]}, {"vllm": facts}, FASTER
    )
    assert rows[-1] == {"adapter": "average", "this engine": 3.0, "vllm, ngram": 1.5}
    page = text({"vllm": Section(facts), "llama.cpp": Section(skipped="no compiler")})
    assert "vllm: 16 test prompts of each adapter" in page
    assert "- llama.cpp: left out: no compiler" in page


def test_a_build_without_a_compiler_says_so() -> None:
    printed = (
        "-- a\nCMake Error at CMakeLists.txt:2 (project):\n\n  No CMAKE_C_COMPILER could be found.\n\n  Tell"
    )
    assert llama_cpp._reason(printed).endswith("(project): No CMAKE_C_COMPILER could be found.")
    assert llama_cpp._reason("") == "it printed nothing"
