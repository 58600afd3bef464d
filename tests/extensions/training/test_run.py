"""Whole runs on a tiny base: determinism, interruption, the folder that comes out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import tomllib
from pathlib import Path
from threading import Thread

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from router.config import Settings
from router.engine.base import Delta, Job, Prompt
from router.engine.loader import base_digest
from router.engine.torch_engine import TorchEngine
from router.errors import ConfigError, FailedPrecondition, ResourceExhausted
from router.extensions.training.recipe import RecipeLora
from router.extensions.training.run import Display, interruptible, train
from router.extensions.training.trainer import Progress, Trainer
from router.registry.format.artifact import FolderRules, read_artifact
from router.registry.format.manifest import parse_manifest, parse_probes
from router.registry.registry import Registry, RegistryOptions
from router.types import AdapterRef, AdapterState, SamplingParams, Turn
from tests.extensions.training.tiny import recipe_text, write_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
]


@pytest.fixture(scope="module")
def colours(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipe makes as it stands."""
    root = tmp_path_factory.mktemp("colours")
    write_data(root)
    (root / "colours.toml").write_text(recipe_text(tiny_base))
    return train(root / "colours.toml", root / "colours", work=root / "work", device="cpu")


@pytest.fixture
def run(recipe: Path, tmp_path: Path):
    def made(name: str, resume: bool = False, work: str = "work") -> Path:
        return train(recipe, tmp_path / name, resume=resume, work=tmp_path / work, device="cpu")

    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C in the middle of a given step."""
    step = Trainer._step

    def at(number: int) -> None:
        def stepping(self: Trainer, now: int):
            if now == number:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, now)

        monkeypatch.setattr(Trainer, "_step", stepping)

    return at


def test_folder_is_complete_and_peft_loads_it(colours: Path, tiny_base: Path) -> None:
    assert sorted(path.name for path in colours.iterdir()) == [
        "adapter.toml", "adapter_config.json", "adapter_model.safetensors", "probes.jsonl", "train_log.jsonl",
    ]  # fmt: skip
    assert {tensor.dtype for tensor in weights(colours).values()} == {torch.bfloat16}
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    before = base(torch.tensor([[5, 6, 7]])).logits.detach().clone()
    after = PeftModel.from_pretrained(base, colours)(torch.tensor([[5, 6, 7]])).logits
    assert not torch.allclose(before, after)


def test_manifest_says_what_the_recipe_said(colours: Path, tiny_base: Path) -> None:
    manifest, findings = parse_manifest((colours / "adapter.toml").read_bytes(), "colours")
    assert findings == ()
    assert (manifest.name, manifest.version, manifest.domain) == ("colours", "1.0.0", "art")
    assert manifest.prompt.system == "Name the colour."
    assert manifest.generation.max_tokens == 8
    assert manifest.routing.examples == ('which colour is "it"?', "back\\slash")
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    assert manifest.base.digest == base_digest(base)
    config = json.loads((colours / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == manifest.base.model == "base"
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.fixture
def late(run, recipe: Path) -> Path:
    """The folder of an activated LoRA."""
    header = "<|im_start|>assistant\\n"
    text = recipe.read_text().replace("rank = 4", f'rank = 4\ninvocation = "{header}"')
    recipe.write_text(text.replace("steps = 6", "steps = 20").replace("eval_every = 2", "eval_every = 10"))
    return run("colours")


async def test_an_activated_lora_learns_and_serves_as_it_was_trained(late: Path, tiny_base: Path) -> None:
    facts, *records = [json.loads(line) for line in (late / "train_log.jsonl").read_text().splitlines()]
    assert facts["settings"]["lora"]["invocation"] == "<|im_start|>assistant\n"
    first, last = [record["valid_loss"] for record in records if "valid_loss" in record]
    assert last < first
    settings = Settings(model=str(tiny_base), dtype="float32", device="cpu", cache_tokens=2048, native=False)
    made = TorchEngine(settings)
    made.start()
    try:
        artifact, seen = read_artifact(late, FolderRules(made.info))
        tokens = made.encode(Prompt((Turn("user", "colour?"),), template=seen.manifest.prompt))
        calls = artifact.invocation_tokens
        assert tuple(tokens[-len(calls) :]) == calls
        assert list(calls[1:]) == made.encode(Prompt(raw="assistant\n", follows=True))
        await made.load(artifact)
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(base, late)
        with torch.no_grad():
            expected = tuned(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            with tuned.disable_adapter():
                plain = tuned(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        job = Job("r", tokens, SamplingParams(max_tokens=1, min_tokens=1, logprobs=1), artifact.digest)
        event = await anext(aiter(made.submit(job)))
        assert isinstance(event, Delta)
        (said,) = event.logprobs
        assert said.logprob == pytest.approx(float(expected[said.token_id]), abs=1e-4)
        assert abs(said.logprob - float(plain[said.token_id])) > 0.01
    finally:
        made.close()


@pytest.mark.parametrize(
    ("invocation", "said"),
    [
        ("<|im_start|>robot\\n", "no '<|im_start|>robot\\\\n' .* ends with .*assistant"),
        ("answer now: " * 30, "lora.invocation has 360 tokens, at most 256 are served"),
        ("x" * 513, "lora.invocation: String should have at most 512 characters"),
    ],
)
def test_an_invocation_that_would_never_act_is_refused_before_training(
    run, recipe: Path, invocation: str, said: str
) -> None:
    recipe.write_text(recipe.read_text().replace("rank = 4", f'rank = 4\ninvocation = "{invocation}"'))
    with pytest.raises(ConfigError, match=said):
        run("colours")


def test_a_run_without_an_invocation_depends_on_none() -> None:
    assert "invocation" not in RecipeLora().model_dump()
    assert RecipeLora(invocation="x").model_dump()["invocation"] == "x"


def start_from(recipe: Path, folder: Path) -> None:
    before = recipe.read_text()
    recipe.write_text(before.replace("rank = 4", f'rank = 4\nstart = "{folder.name}"'))


def test_a_next_version_goes_on_from_the_last_ones_weights(run, recipe: Path) -> None:
    first = run("first")
    recipe.write_text(recipe.read_text().replace("learning_rate = 0.02", "learning_rate = 1e-9"))
    start_from(recipe, first)
    second = run("second")
    assert same(first, second)
    told = json.loads((second / "train_log.jsonl").read_text().splitlines()[0])
    data = (first / "adapter_model.safetensors").read_bytes()
    assert told["start_sha256"] == hashlib.sha256(data).hexdigest()
    assert "start" not in told["settings"]["lora"]


def test_a_start_that_does_not_fit_is_refused(run, recipe: Path) -> None:
    first = run("first")
    start_from(recipe, first)
    recipe.write_text(recipe.read_text().replace("rank = 4", "rank = 2"))
    with pytest.raises(ConfigError, match=r"lora\.start: .* is 4 x 48 in .*first and 2 x 48 here: rank and"):
        run("second")
    (first / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"lora\.start: .* cannot be read"):
        run("second")


def test_a_checkpoint_belongs_to_its_start(run, recipe: Path, interrupt) -> None:
    first = run("first")
    start_from(recipe, first)
    interrupt(3)
    with pytest.raises(KeyboardInterrupt):
        run("second")
    interrupt(0)
    save_file({key: value * 2 for key, value in weights(first).items()}, first / "adapter_model.safetensors")
    with pytest.raises(FailedPrecondition, match="belongs to another recipe"):
        run("second", resume=True)


def test_log_and_probes(colours: Path) -> None:
    facts, *records = [json.loads(line) for line in (colours / "train_log.jsonl").read_text().splitlines()]
    assert facts["rows"] == {"train": 24, "valid": 9, "test": 9}
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "valid_loss" in record] == [2, 4, 6]
    assert records[-1]["valid_loss"] < records[1]["valid_loss"]
    _, findings = parse_probes((colours / "probes.jsonl").read_bytes())
    assert findings == ()


def test_a_constraint_that_cannot_be_served_is_an_error_before_training(run, recipe: Path) -> None:
    recipe.write_text(
        recipe.read_text().replace("max_tokens = 8", 'max_tokens = 8\nfrom_prompt = "nonsense"')
    )
    with pytest.raises(ConfigError, match="there is no template 'nonsense'"):
        run("never")


async def test_an_adapter_that_only_chooses_passes_its_probes_in_a_server(
    tiny_base: Path, tmp_path: Path
) -> None:
    """The base may choose the same answers: what it would say freely is compared."""
    write_data(tmp_path)
    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(rows.replace("blue", "red").replace("green", "red"))  # soon sure
    text = recipe_text(tiny_base, steps=30)
    choices = 'max_tokens = 8\nchoices = ["red", "blue", "green"]'
    (tmp_path / "colours.toml").write_text(text.replace("max_tokens = 8", choices))
    root, state = tmp_path / "adapters", tmp_path / "state"
    recipe, work = tmp_path / "colours.toml", tmp_path / "work"
    folder = await asyncio.to_thread(train, recipe, root / "colours", work=work, device="cpu")
    probes, _ = parse_probes((folder / "probes.jsonl").read_bytes())
    assert [probe.expect for probe in probes] == ["red"]
    engine = TorchEngine(Settings(model=str(tiny_base), device="cpu"))
    engine.start()
    registry = Registry(engine, [root], RegistryOptions(settle_seconds=0.1, state_dir=state))
    await registry.start()
    try:
        async with registry.lease(AdapterRef("colours", "1.0.0")):
            assert registry.get("colours").state is AdapterState.READY
    finally:
        await registry.close()
        engine.close()


def test_another_seed_gives_other_weights(run, recipe: Path, colours: Path) -> None:
    recipe.write_text(recipe.read_text().replace("seed = 3", "seed = 4"))
    assert not same(colours, run("other"))


def test_interrupted_run_resumes_as_if_it_had_not_stopped(
    run, interrupt, colours: Path, tmp_path: Path
) -> None:
    interrupt(3)
    with pytest.raises(KeyboardInterrupt):
        run("cut", work="cut")
    assert not (tmp_path / "cut").joinpath("adapter.toml").exists()
    interrupt(0)
    assert same(run("cut2", resume=True, work="cut"), colours)
    log = (tmp_path / "cut2" / "train_log.jsonl").read_text().splitlines()
    assert len(log) == 7


def test_damaged_checkpoint_is_refused(run, interrupt, tmp_path: Path) -> None:
    interrupt(3)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    path = tmp_path / "work" / "colours" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FailedPrecondition, match="is damaged"):
        run("cut", resume=True)


def test_early_stopping_keeps_the_best(run, recipe: Path, tiny_base: Path) -> None:
    recipe.write_text(
        recipe_text(tiny_base, steps=40, train="patience = 2\nclip = 1e9").replace("0.02", "2.0")
    )
    folder = run("colours")
    records = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()][1:]
    losses = [record["valid_loss"] for record in records if "valid_loss" in record]
    assert len(records) < 40
    assert min(losses) == losses[-3]


def test_full_disk_at_export(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("router.extensions.training.export._save_weights", no_space)
    with pytest.raises(ResourceExhausted, match="disk is full"):
        run("colours")
    assert not (tmp_path / "colours").exists()
    assert (tmp_path / "work" / "colours" / "checkpoint.pt").is_file()
    monkeypatch.undo()
    assert (
        tomllib.loads((run("colours", resume=True) / "adapter.toml").read_text())["adapter"]["name"]
        == "colours"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rank = 4", 'rank = 4\ntargets = ["nowhere"]', "lora.targets"),
        ('valid = "valid.jsonl"', 'valid = "valid.jsonl"\nmax_tokens = 8', "longer than data.max_tokens=8"),
    ],
)
def test_recipes_that_do_not_fit_the_base_or_data(run, recipe: Path, old: str, new: str, said: str) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        run("colours")
    assert said in caught.value.message


def test_first_ctrl_c_asks_second_one_kills_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_works_outside_the_main_thread() -> None:
    seen: list[bool] = []

    def body() -> None:
        with interruptible() as asked:
            seen.append(asked.is_set())

    thread = Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_log_has_a_line_from_the_first_step_on(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    display = Display(100, lambda: now)
    for step in range(1, 9):
        now = 4.0 * step
        display.update(Progress(step=step, history=[{"loss": 1.5}]))
    assert capsys.readouterr().err.splitlines() == [
        "step 1 of 100: train 1.500, about 396 s left",
        "step 5 of 100: train 1.500, about 380 s left",
    ]
