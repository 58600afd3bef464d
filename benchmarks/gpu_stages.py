"""One stage of `make bench-gpu`, in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import report
from benchmarks.contestants import ROOT, Entry, Field
from benchmarks.gpu_place import BASE, Place, emptied, random_engine, random_model, random_prompts, settings
from benchmarks.workload import (
    export,
    jobs,
    peft_generate,
    peft_model,
    random_adapter,
    run_jobs,
)
from router.engine.base import AdapterArtifact, Delta, Job
from router.engine.loader import load_model
from router.engine.ops import BLOCK, AttentionPlan, LoraPlan, SiteGroup
from router.engine.torch_engine import TorchEngine
from router.engine.torch_ops import TorchOps
from router.errors import ResourceExhausted
from router.models import resolve_model
from router.registry.format.artifact import FolderRules, read_artifact
from router.registry.format.manifest import parse_probes
from router.types import SamplingParams, TokenLogprob

SPECIALISTS = ("medical", "legal", "financial", "qa", "summarization", "translation", "code")
FARTHEST, USUAL = 0.5, 0.03  # nats: one token's log-probability in bfloat16, and the mean over all tokens


# -- card


def card(place: Place) -> None:
    """What is here. Fails where torch sees no CUDA device."""
    cuda = place.device.type == "cuda"
    if cuda and not torch.cuda.is_available():
        place.fail(f"torch {torch.__version__} sees no CUDA device; install torch's CUDA build")
        return
    if cuda:
        about = torch.cuda.get_device_properties(place.device)
        place.row(
            what=about.name,
            memory=f"{about.total_memory / 2**30:.1f} GiB",
            capability=f"{about.major}.{about.minor}",
            processors=about.multi_processor_count,
            cuda=str(torch.version.cuda),
        )
        place.note(
            _line("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv")
        )
    else:
        place.row(what=report.hardware()["cpu"], memory=f"{report.hardware()['memory_gib']} GiB")
    found = report.versions("torch", "triton", "transformers", "peft", "vllm")
    place.note(", ".join(f"{name} {number}" for name, number in found.items()))
    if find_spec("triton") is None:
        (place.note if place.rehearsed else place.fail)("Triton is not installed: plain torch would serve")


def _line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return " | ".join((done.stdout or done.stderr).split("\n")[:3]).strip(" |")


# -- tests


def tests(place: Place) -> None:
    """pytest's own result. In a rehearsal tests that need a card are collected and skipped."""
    chosen = ["-m", "gpu"] if not place.rehearsed else ["-k", "gpu or interpreter"]
    where = ["tests/engine/test_gpu.py", "tests/engine/triton"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *chosen,
        *where,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-300:]]
    place.note(last[0].strip("= "))
    if done.returncode:
        place.fail("pytest: " + " ".join(done.stdout.strip().splitlines()[-6:]))
    elif not place.rehearsed and not re.search(r"\d+ passed", last[0]):
        place.fail("no test ran")


# -- parity


def parity(place: Place) -> None:
    """Log-probabilities of an answer's tokens, by steps here and by one pass of transformers or PEFT.

    The answers are the engine's own, so that a near tie that falls the other way changes nothing.
    """
    place_of_base = resolve_model(BASE)
    loaded = load_model(place_of_base, BASE)
    dtype = str(place.dtype).removeprefix("torch.")
    engine = TorchEngine(settings(place, dtype=dtype), load_model(place_of_base, BASE))
    engine.start()
    place.note(f"engine: {engine.info.kernels}, {engine.info.precision}")
    model: Any = loaded.model.to(place.device, place.dtype)
    names = SPECIALISTS[:2] if place.rehearsed else SPECIALISTS
    for name in ("", *names):
        folder = ROOT / "adapters" / (name or names[0])
        probes = parse_probes((folder / "probes.jsonl").read_bytes())[0][: 1 if place.rehearsed else 4]
        digest, tuned = None, model
        if name:
            artifact = read_artifact(folder, FolderRules(engine.info))[0]
            place.runner.run(engine.load(artifact))
            digest, tuned = artifact.digest, _with_adapter(model, folder)
        farthest, total, count = 0.0, 0.0, 0
        for probe in probes:
            tokens = loaded.tokenizer(probe.prompt)["input_ids"]
            answer = place.runner.run(_answer(engine, tokens, digest, 8 if place.rehearsed else 48))
            for ours, theirs in zip(answer, _of_one_pass(tuned, tokens, answer), strict=True):
                off = abs(ours.logprob - theirs)
                farthest, total, count = max(farthest, off), total + off, count + 1
        if name:
            model = tuned.unload()
        place.row(adapter=name or "none", tokens=count, mean=total / max(count, 1), farthest=farthest)
        if not count or farthest > FARTHEST or total / count > USUAL:
            place.fail(f"{name or 'the base'} differs from {'PEFT' if name else 'transformers'}")
    engine.close()
    place.note(f"nats; at most {FARTHEST} of one token and {USUAL} in the mean pass")


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder)).to(model.dtype).eval()


def _of_one_pass(model: Any, prompt: Sequence[int], answer: Sequence[TokenLogprob]) -> list[float]:
    ids = [*prompt, *(token.token_id for token in answer)]
    with torch.inference_mode():
        logits = model(torch.tensor([ids], device=model.device)).logits[0, len(prompt) - 1 : -1].float()
    wanted = torch.tensor(ids[len(prompt) :], device=logits.device)
    found: list[float] = (logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
    return found


async def _answer(engine: TorchEngine, tokens: list[int], digest: str | None, new: int) -> list[TokenLogprob]:
    params = SamplingParams(max_tokens=new, min_tokens=new, logprobs=1)
    events = [event async for event in engine.submit(Job("parity", tokens, params, digest))]
    return [one for event in events if isinstance(event, Delta) for one in event.logprobs]


# -- operations


def operations(place: Place) -> None:
    """Each operation of a layer by plain torch and by what serves, against the time to move its bytes."""
    ops = _serving_ops(place)
    place.note(f"operations that serve: {ops.name}")
    shape = place.shape.config
    hidden, inner, kv = shape["hidden_size"], shape["intermediate_size"], shape["num_key_value_heads"]
    dim = hidden // shape["num_attention_heads"]
    widths = {
        "q, k, v": (hidden, hidden + 2 * kv * dim),
        "o": (hidden, hidden),
        "gate, up": (hidden, 2 * inner),
        "down": (inner, hidden),
    }
    for name, (inputs, outputs) in widths.items():
        linear = ops.pack_linear(_random(place, outputs, inputs), None)
        for rows in place.shape.rows:
            x = _random(place, rows, inputs)
            moved = (outputs * inputs + rows * (inputs + outputs)) * x.element_size()
            _timed(place, name, f"{rows} rows", moved, partial(linear, x), None)
    for context in place.shape.contexts:
        _attention(place, ops, max(place.shape.rows), context)
    for count in filter(None, place.shape.adapters):
        for rank in (4,) if place.rehearsed else (8, 16, 64):
            _lora(place, ops, count, rank)


def _serving_ops(place: Place) -> TorchOps:
    from router.engine.triton import load_triton_ops

    if place.device.type != "cuda":
        return TorchOps()
    dim = place.shape.config["hidden_size"] // place.shape.config["num_attention_heads"]
    ops, why = load_triton_ops(place.device, place.dtype, dim)
    if ops.name == "torch":
        place.fail(why)
    return ops


def _timed(
    place: Place,
    name: str,
    work: str,
    moved: int,
    ours: Callable[[], object],
    plain: Callable[[], object] | None,
) -> None:
    with torch.inference_mode():
        seconds = place.seconds(ours)
        other = place.seconds(plain) if plain else seconds
    place.row(
        operation=name,
        work=work,
        us=1e6 * seconds,
        **{"GB/s": 1e-9 * moved / seconds, "plain torch, us": 1e6 * other, "times as fast": other / seconds},
    )


def _random(place: Place, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=place.dtype, device=place.device)


def _ints(place: Place, values: Sequence[int] | Sequence[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=place.device)


def _attention(place: Place, ops: TorchOps, rows: int, context: int) -> None:
    """A token of each row over its context."""
    config = place.shape.config
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim, blocks = config["hidden_size"] // heads, -(-context // BLOCK)
    caches = [_random(place, rows * blocks, kv, BLOCK, dim) for _ in range(2)]
    bounds = list(range(rows + 1))
    table = _ints(place, [list(range(row * blocks, (row + 1) * blocks)) for row in range(rows)])
    places = _ints(place, [context - 1] * rows)
    plan = AttentionPlan(
        _ints(place, bounds),
        _ints(place, [context] * rows),
        table,
        places,
        places,
        1,
        bounds,
        [context] * rows,
    )
    qkv = _random(place, rows, (heads + 2 * kv) * dim)
    moved = 2 * rows * context * kv * dim * qkv.element_size()

    def by(one: TorchOps) -> Callable[[], object]:
        return lambda: one.attention(qkv, caches[0], caches[1], plan, heads, dim**-0.5)

    _timed(place, "attention", f"{rows} rows of {context} tokens", moved, by(ops), by(TorchOps()))


def _lora(place: Place, ops: TorchOps, count: int, rank: int) -> None:
    """A row for each adapter at the gate and up layers."""
    hidden, inner = place.shape.config["hidden_size"], place.shape.config["intermediate_size"]
    group = SiteGroup(("gate", "up"), hidden, (0, inner, 2 * inner))
    weights: list[tuple[torch.Tensor, torch.Tensor] | None] = [
        (ops.pack_a(_random(place, 2 * rank, hidden) / 64), ops.pack_b(_random(place, 2 * inner, rank)))
        for _ in range(count)
    ]
    table = torch.tensor([[a.data_ptr(), b.data_ptr(), rank] for a, b in filter(None, weights)])
    bounds = list(range(count + 1))
    plan = LoraPlan(_ints(place, bounds), table.to(place.device), weights, bounds)
    x, y = _random(place, count, hidden), _random(place, count, 2 * inner)
    moved = sum(tensor.nbytes for pair in weights if pair for tensor in pair)

    def by(one: TorchOps) -> Callable[[], object]:
        return lambda: one.lora(y, x, plan, group)

    _timed(place, "adapters at gate, up", f"{count} of rank {rank}", moved, by(ops), by(TorchOps()))


# -- step


def step(place: Place) -> None:
    """Tokens a second by rows, adapters and context; then what a step of decoding is made of."""
    engine, artifacts = random_engine(place)
    shape = place.shape
    digests = [artifact.digest for artifact in artifacts]
    vocabulary = shape.config["vocab_size"]
    for context in shape.contexts:
        for rows in shape.rows:
            for adapters in (0, min(8, rows)) if rows > 1 else (0,):
                tokens = random_prompts(vocabulary, rows, context)
                chosen: list[str | None] = [*digests[:adapters]] or [None]
                work = [jobs(tokens, chosen, new) for new in (1, 1 + shape.new)]
                place.runner.run(run_jobs(engine, work[0]))
                first = place.runner.run(run_jobs(engine, work[0]))[0]
                whole = place.runner.run(run_jobs(engine, work[1]))[0]
                ms = 1e3 * max(whole - first, 1e-9) / shape.new
                place.row(
                    rows=rows,
                    adapters=adapters,
                    context=context,
                    **{"step, ms": ms, "tokens/s": 1e3 * rows / ms},
                )
    _profile(place, engine, digests)
    engine.close()


def _profile(place: Place, engine: TorchEngine, digests: Sequence[str]) -> None:
    """Launches, waits and how busy the device is while answers decode."""
    from torch.profiler import ProfilerActivity, profile

    shape = place.shape
    cuda = place.device.type == "cuda"
    tokens = random_prompts(shape.config["vocab_size"], max(shape.rows), shape.contexts[0])
    work = jobs(tokens, [*digests[:8]], shape.new)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    before = engine.status().steps
    with profile(activities=activities) as seen:
        seconds, _ = place.runner.run(run_jobs(engine, work))
    steps = max(1, engine.status().steps - before)
    events = list(seen.key_averages())

    def calls(*names: str) -> float:
        return float(sum(e.count for e in events if e.key in names)) / steps

    busy = sum(getattr(e, "self_device_time_total", 0.0) for e in events) * 1e-6
    place.note(
        f"{len(work)} rows, 8 adapters, profiled: {1e3 * seconds / steps:.3g} ms a step, the device busy "
        f"{busy / seconds:.0%} of the time; a step has "
        f"{calls('cudaLaunchKernel', 'cuLaunchKernel'):.0f} launches, "
        f"{calls('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize'):.1f} waits and "
        f"{calls('cudaMemcpyAsync'):.1f} copies"
    )


# -- peers


def peers(place: Place) -> None:
    """The same prompts and adapters in this engine, PEFT and, where it is here, vLLM; one after the other."""
    shape = place.shape
    tokens = random_prompts(shape.config["vocab_size"], max(shape.rows), shape.contexts[0])
    artifacts = _ours(place, tokens)
    emptied(place)
    _peft(place, artifacts, tokens)
    emptied(place)
    _vllm(place, artifacts, tokens)
    _ratios(place)


def _ours(place: Place, tokens: list[list[int]]) -> list[AdapterArtifact]:
    engine, made = random_engine(place)
    artifacts = made[:8]
    for count in (0, len(artifacts)):
        chosen: list[str | None] = [a.digest for a in artifacts[:count]] or [None]
        work = jobs(tokens, chosen, place.shape.new)
        _race(place, "lora-router", count, partial(_run, place, engine, work))
    engine.close()
    return artifacts


def _run(place: Place, engine: TorchEngine, work: Sequence[Job]) -> tuple[float, int]:
    return place.runner.run(run_jobs(engine, work))


def _peft(place: Place, artifacts: Sequence[AdapterArtifact], tokens: list[list[int]]) -> None:
    tuned, new = peft_model(random_model(place), artifacts), place.shape.new
    with tuned.disable_adapter():
        _race(place, "PEFT", 0, lambda: peft_generate(tuned, tokens, None, new))
    names = [f"a{n % len(artifacts)}" for n in range(len(tokens))]
    _race(place, "PEFT", len(artifacts), lambda: peft_generate(tuned, tokens, names, new))


def _race(place: Place, who: str, adapters: int, work: Callable[[], tuple[float, int]]) -> None:
    work()
    found = [work() for _ in range(1 if place.rehearsed else 3)]
    speeds = [tokens / seconds for seconds, tokens in found]
    place.row(**{"contestant": who, "adapters": adapters, "tokens/s": median(speeds)}, least=min(speeds))


def _vllm(place: Place, artifacts: Sequence[AdapterArtifact], tokens: list[list[int]]) -> None:
    python = place.vllm_python or (sys.executable if find_spec("vllm") else "")
    if not python:
        place.note("vLLM was left out: name the Python of an environment that has it with --vllm-python")
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        base.mkdir()
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
        (base / "config.json").write_text(json.dumps(config | dict(place.shape.config)))
        load_model(resolve_model(BASE), BASE).tokenizer.save_pretrained(base)
        places = [str(export(artifact, Path(folder))) for artifact in artifacts]
        for count in (0, len(places)):
            command = [python, "-m", "benchmarks.peer_vllm", str(base), "bfloat16", str(len(tokens))]
            with Field() as contestants:
                contestants.start(Entry("vLLM", [*command, *places[:count]]))
                work = {"prompts": tokens, "new": place.shape.new, "adapters": count}

                def once(work: dict[str, Any] = work, contestants: Field = contestants) -> tuple[float, int]:
                    answer = contestants.ask("vLLM", work)
                    return answer["seconds"], answer["tokens"]

                _race(place, "vLLM", count, once)


def _ratios(place: Place) -> None:
    speeds = {(row["contestant"], row["adapters"]): row["tokens/s"] for row in place.rows}
    for (who, adapters), speed in speeds.items():
        if who != "lora-router":
            ratio = speeds["lora-router", adapters] / speed
            place.note(f"{adapters} adapters: lora-router / {who} = {ratio:.2f}")


# -- limits


def limits(place: Place) -> None:
    """What is left of the memory, adapters that evict each other, one that is too large, and waits."""
    cache: dict[str, Any] = {"cache_tokens": "auto"} if place.device.type == "cuda" else {}
    engine, artifacts = random_engine(place, **cache)
    shape = place.shape
    status = engine.status()
    place.note(f"the KV cache holds {status.cache_blocks * status.block_size:,} tokens")
    if place.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(place.device)
        place.row(what="memory free after the start", value=f"{free / 2**30:.2f} of {total / 2**30:.2f} GiB")
    engine.close()
    del engine
    emptied(place)
    churned, artifacts = random_engine(place, slots=2)
    tokens = random_prompts(shape.config["vocab_size"], 1, shape.contexts[0])[0]
    alone = [place.runner.run(_ids(churned, tokens, a.digest, shape.new)) for a in artifacts]

    async def together() -> list[list[int]]:
        work = [_ids(churned, tokens, a.digest, shape.new) for _ in range(2) for a in artifacts]
        return await asyncio.gather(*work)

    same = sum(a == b for a, b in zip(place.runner.run(together()), alone * 2, strict=True))
    place.row(what="answers of adapters that evict each other, as alone", value=f"{same} of {2 * len(alone)}")
    if same < 0.9 * 2 * len(alone):  # the batch changes last bits on CUDA, and they near ties
        place.fail("answers change while adapters come and go")
    _too_large(place, churned)
    _waits(place, churned, tokens)
    churned.close()


async def _ids(engine: TorchEngine, tokens: list[int], digest: str | None, new: int) -> list[int]:
    return [one.token_id for one in await _answer(engine, tokens, digest, new)]


def _too_large(place: Place, engine: TorchEngine) -> None:
    """An adapter larger than the device's memory is refused, and the others go on."""
    if place.device.type != "cuda":
        place.note("an adapter larger than the device: needs a card")
        return
    free, _ = torch.cuda.mem_get_info(place.device)
    width = sum(sum(pair) for pair in engine.info.sites.values())
    huge = random_adapter("1000000", engine.info.sites, rank=2 * (free // (2 * width) // 2) + 512)
    place.runner.run(engine.load(huge))
    try:
        place.runner.run(_ids(engine, [1, 2, 3], huge.digest, 2))
    except ResourceExhausted:
        place.row(what="an adapter larger than the device", value="refused with RESOURCE_EXHAUSTED")
    else:
        place.fail("an adapter larger than the device was served")
    if len(place.runner.run(_ids(engine, [1, 2, 3], None, 2))) != 2:
        place.fail("the base does not answer after an adapter that was too large")


def _waits(place: Place, engine: TorchEngine, tokens: list[int]) -> None:
    """Calls that make the engine's thread wait for the device, by torch's own warnings."""
    if place.device.type != "cuda":
        place.note("waits for the device: need a card")
        return
    import warnings

    with warnings.catch_warnings(record=True) as seen, _sync_warnings():
        warnings.simplefilter("always")
        place.runner.run(_ids(engine, tokens, None, place.shape.new))
    waits = [str(one.message) for one in seen if "synchroniz" in str(one.message)]
    place.row(what="waits a step of one row", value=f"{len(waits) / place.shape.new:.1f}")


@contextmanager
def _sync_warnings() -> Any:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


STAGES: dict[str, Callable[[Place], None]] = {
    "card": card,
    "tests": tests,
    "parity": parity,
    "operations": operations,
    "step": step,
    "peers": peers,
    "limits": limits,
}


def main() -> int:
    """Run one stage; the exit status is 1 if it failed."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("stage", choices=STAGES)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--device", default="cuda:0")
    made.add_argument("--rehearse", action="store_true")
    made.add_argument("--vllm-python", default="")
    args = made.parse_args()
    place = Place(torch.device(args.device), args.out, args.rehearse, args.vllm_python)
    place.write()
    with place.runner:
        STAGES[args.stage](place)
    place.write()
    return int(bool(place.failed))


if __name__ == "__main__":
    raise SystemExit(main())
