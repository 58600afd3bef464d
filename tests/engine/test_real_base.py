"""The default base with the adapters of this repository: parity, one batch, memory that stays flat."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from router.config import Settings
from router.engine.base import AdapterArtifact, Prompt
from router.engine.loader import load_model
from router.engine.torch_engine import TorchEngine
from router.models import resolve_model
from router.registry.format.artifact import FolderRules, read_artifact
from router.types import Turn
from tests.engine import tiny
from tests.engine.test_mixing import log_probabilities, scored

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2] / "adapters"
FOLDERS = sorted(  # plain ones: what an activated one does is in `test_parity`, and no mixture has it
    path.parent
    for path in ROOT.glob("*/adapter_config.json")
    if not json.loads(path.read_text()).get("alora_invocation_tokens")
)
BASE = "smollm2-135m-instruct"
NEW = 8
STEP = 256  # tokens: longer prompts are read in several steps
HALF_AND_HALF = {"medical": 0.5, "legal": 0.5}


@pytest.fixture(scope="module")
def made() -> Iterator[TorchEngine]:
    settings = Settings(model=BASE, dtype="float32", cache_tokens=8192, max_step_tokens=STEP)
    engine = TorchEngine(settings)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def artifacts(made: TorchEngine) -> dict[str, tuple[AdapterArtifact, Any]]:
    assert len(FOLDERS) >= 2, "the repository ships at least two trained adapters"
    read = [read_artifact(folder, FolderRules(made.info)) for folder in FOLDERS]
    return {artifact.name: (artifact, inspection) for artifact, inspection in read}


@pytest.fixture(scope="module")
def reference() -> Any:
    """PEFT in float32: `reference(name)` is the base with that adapter alone, `reference(None)` the base."""
    from peft import PeftModel

    base = load_model(resolve_model(BASE), BASE).model.float()
    model: Any = PeftModel.from_pretrained(base, FOLDERS[0], adapter_name=FOLDERS[0].name).eval()
    for folder in FOLDERS[1:]:
        model.load_adapter(folder, folder.name)

    @contextmanager
    def alone(name: str | None) -> Iterator[Any]:
        with nullcontext() if name else model.disable_adapter():
            model.set_adapter(name or FOLDERS[0].name)
            yield model

    return alone


def prompt_of(folder: Path, number: int) -> str:
    """The shortest, or the next, of the adapter's own probes: none of them is a test row."""
    probes = (json.loads(line)["prompt"] for line in (folder / "probes.jsonl").read_text().splitlines())
    return str(sorted(probes, key=len)[number])


async def test_sixteen_mixed_requests_equal_peft_alone(
    made: TorchEngine, artifacts: dict[str, tuple[AdapterArtifact, Any]], reference: Any
) -> None:
    """Every adapter, and the base with the same prompt; a second one of the first."""
    work: list[tuple[str | None, str | None, list[int]]] = []
    for number, folder in enumerate([*FOLDERS, FOLDERS[0]]):
        artifact, inspection = artifacts[folder.name]
        await made.load(artifact)
        turns = (Turn("user", prompt_of(folder, number // len(FOLDERS))),)
        template = inspection.manifest.prompt
        work.append((folder.name, artifact.digest, made.encode(Prompt(turns, template=template))))
        work.append((None, None, made.encode(Prompt(turns))))
    work = (work * 16)[:16]
    answers = await asyncio.gather(
        *(tiny.answer(made, tokens, digest, max_tokens=NEW) for _, digest, tokens in work),
        churn(made, artifacts),
    )
    of_the_base = [at for at, (name, *_) in enumerate(work) if name is None]
    for at, ((name, _, tokens), result) in enumerate(zip(work, answers, strict=False)):
        assert result is not None
        if at in of_the_base[2:]:
            continue  # two of the base's rows are enough to compare
        with reference(name) as model:
            assert result[0] == tiny.greedy(model, tokens, result[0], NEW, made._eos), name


async def churn(made: TorchEngine, artifacts: dict[str, tuple[AdapterArtifact, Any]]) -> None:
    """Other adapters load and unload meanwhile."""
    artifact = next(iter(artifacts.values()))[0]
    for i in range(4):
        other = AdapterArtifact("other", str(i), f"other-{i}", artifact.sites)
        await made.load(other)
        await tiny.answer(made, [1, 2, 3], other.digest, max_tokens=2)
        assert await made.unload(other.digest) > 0


def named(weights: dict[str, float]) -> str:
    return ",".join(f"{name}={weight}".replace(".", "_") for name, weight in weights.items())


async def mixed(
    made: TorchEngine, artifacts: dict[str, tuple[AdapterArtifact, Any]], weights: dict[str, float]
) -> str:
    """The digest of that mixture, loaded."""
    parts = []
    for name, weight in weights.items():
        await made.load(artifacts[name][0])
        parts.append((artifacts[name][0].digest, weight))
    mixture = AdapterArtifact("mixture", "", named(weights), {}, parts=tuple(parts))
    await made.load(mixture)
    return mixture.digest


def mix_in_peft(model: Any, weights: dict[str, float]) -> str:
    """The name of the same mixture, made by PEFT."""
    name = named(weights)
    assert name not in model.peft_config
    model.add_weighted_adapter(list(weights), list(weights.values()), name, combination_type="cat")
    model.eval()  # what was added last would drop out, as in training
    return name


@pytest.mark.long
async def test_in_bfloat16_a_mixture_is_off_by_what_an_adapter_is(
    artifacts: dict[str, tuple[AdapterArtifact, Any]], reference: Any
) -> None:
    """Against PEFT in float32, on prompts of all kinds: bfloat16 costs it no more than its parts."""
    engine, weights = TorchEngine(Settings(model=BASE, dtype="bfloat16", cache_tokens=4096)), HALF_AND_HALF
    engine.start()
    try:
        with reference("medical") as model:
            mixture = mix_in_peft(model, weights)
        digests = {mixture: await mixed(engine, artifacts, weights)}
        digests |= {name: artifacts[name][0].digest for name in weights}
        far: dict[str, float] = {}
        for name, digest in digests.items():
            off: list[float] = []
            for folder in FOLDERS[:4]:
                tokens = engine.encode(Prompt((Turn("user", prompt_of(folder, 0)),)))
                found, said = await scored(engine, tokens, digest, 12)
                with reference(name) as model:
                    exact = log_probabilities(model, tokens, found)
                off += [abs(mine - theirs) for mine, theirs in zip(said, exact, strict=True)]
            far[name] = statistics.fmean(off)
    finally:
        engine.close()
    assert far[mixture] <= 1.5 * max(far["medical"], far["legal"]), far


@pytest.mark.long
async def test_a_prompt_in_chunks_up_to_the_bases_own_limit(made: TorchEngine, reference: Any) -> None:
    """The longest leaves room for eight tokens. Four are asked for, and are PEFT's own."""
    assert made.info.context_length == 8192
    tokens = list(torch.randint(1000, 40000, (8184,), generator=torch.manual_seed(0)).tolist())
    found, end = await tiny.answer(made, tokens, max_tokens=4, min_tokens=4)
    assert end.usage.completion_tokens == 4
    with reference(None) as model:
        assert found == tiny.greedy(model, tokens, found, 4, frozenset())
