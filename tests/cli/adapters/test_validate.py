import json
from pathlib import Path

import pytest

from router.cli.adapter_folders import read_profiles
from router.cli.base_files import find_base, read_base
from router.cli.command import CliError
from tests.cli.tiny import write_adapter, write_base


@pytest.fixture
def base(own_folder, monkeypatch):
    """The base of the settings."""
    folder = write_base(own_folder / "tiny-base")
    monkeypatch.setenv("LORA_ROUTER_MODEL", str(folder))
    return folder


@pytest.fixture
def adapter(own_folder):
    def make(name="good", **spoilt):
        return write_adapter(own_folder / name, **spoilt)

    return make


def test_a_good_folder_is_told_with_its_facts(cli, base, adapter):
    done = cli("adapters", "validate", adapter())
    assert done.code == 0
    assert "good: ok  good@" in done.out
    assert "rank 2  2 sites: q_proj, up_proj" in done.out


def test_it_tells_from_which_tokens_on_an_activated_lora_acts(cli, base, adapter):
    late, foreign = adapter("late"), adapter("foreign")
    for folder, tokens in ((late, [1, 2]), (foreign, [1, 10**6])):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"alora_invocation_tokens": tokens}))
    done = cli("adapters", "validate", late)
    assert done.code == 0
    assert "acts from the tokens 1, 2 on" in done.out
    refused = cli("adapters", "validate", foreign)
    assert refused.code == 1
    assert "vocabulary" in refused.out


def test_all_that_is_wrong_is_told_at_once_for_all_folders(cli, base, adapter):
    spoilt = adapter("spoilt", b=float("nan"))
    (spoilt / "adapter.toml").write_text('[adapter]\nversion = "no spaces please"\n[prompts]\n')
    done = cli("adapters", "validate", adapter(), spoilt)
    assert done.code == 1
    assert "good: ok" in done.out
    assert "spoilt: REFUSED" in done.out
    assert "manifest-unknown-key" in done.out
    assert "manifest-value" in done.out


def test_a_constraint_is_checked_beside_other_faults(cli, base, adapter):
    folder = adapter("idle", b=0.0)
    (folder / "adapter.toml").write_text('[generation]\nregex = "(a"\n')
    done = cli("adapters", "validate", folder)
    assert "no-effect" in done.out
    assert "constraint-refused" in done.out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('regex = "(a"', "regex: unclosed group, at character 0"),
        ('grammar = "start: foo"', "unknown name"),
        ('json_schema = \'{"type": "object", "not": {}}\'', "keyword 'not' is not supported"),
        ('from_prompt = "sqll"', "there is no template 'sqll', but quote, sql"),
    ],
)
def test_a_constraint_that_no_answer_can_keep_to_is_refused(cli, base, adapter, given, told):
    folder = adapter("held")
    (folder / "adapter.toml").write_text(f"[generation]\n{given}\n")
    done = cli("adapters", "validate", folder)
    assert done.code == 1
    assert "refuse  constraint-refused  adapter.toml [generation] " in done.out
    assert told in done.out


@pytest.mark.parametrize("given", ['regex = "a+"', 'choices = ["a", "b"]', 'from_prompt = "sql"'])
def test_a_constraint_that_compiles_is_accepted(cli, base, adapter, given):
    folder = adapter("held")
    (folder / "adapter.toml").write_text(f"[generation]\n{given}\n")
    done = cli("adapters", "validate", folder)
    assert done.code == 0
    assert "constraint-refused" not in done.out


def test_an_adapter_that_does_nothing_is_refused(cli, base, adapter):
    done = cli("adapters", "validate", adapter("idle", b=0.0), "--json")
    (report,) = json.loads(done.out)
    assert done.code == 1
    assert not report["ok"]
    assert [f["code"] for f in report["findings"] if f["severity"] == "refuse"] == ["no-effect"]


def test_modules_are_compared_with_the_base(cli, base, adapter):
    foreign = adapter("foreign", modules={"model.layers.9.self_attn.q_proj": (8, 8)})
    assert cli("adapters", "validate", foreign).code == 1
    done = cli("adapters", "validate", foreign, "--no-base")
    assert done.code == 0
    assert "were not compared with a base" in done.out


def test_a_base_without_weights_is_a_misuse(cli, base, adapter):
    (base / "model.safetensors").unlink()
    done = cli("adapters", "validate", adapter())
    assert done.code == 2
    assert "--no-base" in done.err


def test_the_digest_is_read_only_where_a_manifest_pins_it(cli, base, adapter, monkeypatch):
    monkeypatch.setattr("router.cli.base_files.base_digest_of", lambda *_: "ab" * 32)
    pinned = adapter("pinned")
    (pinned / "adapter.toml").write_text(f'[base]\ndigest = "{"cd" * 32}"\n')
    done = cli("adapters", "validate", pinned)
    assert done.code == 1
    assert "other-base" in done.out
    (pinned / "adapter.toml").write_text(f'[base]\ndigest = "{"ab" * 32}"\n')
    assert cli("adapters", "validate", pinned).code == 0


@pytest.mark.slow
def test_the_default_base_is_read_as_the_engine_reads_it():
    from router.engine.loader import base_digest, load_model
    from router.models import fetch_base

    model = load_model(fetch_base(), "default").model
    folder = find_base("smollm2-135m-instruct")
    assert folder is not None
    read = read_base(folder, "default", with_digest=True)
    linear = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if hasattr(module, "out_features") and name != "lm_head"
    }
    assert read.sites == linear
    assert read.digest == base_digest(model)


COUNTING = """
from router import hookimpl
from router.routing import Classifier

class Counting(Classifier):
    name = "counting"
    found = {}

    def fit(self, adapters):
        names = sorted(one.name for one in adapters)
        self.found = {one.name: f"{len(one.examples)} examples, of {', '.join(names)}" for one in adapters}

    def findings(self):
        return self.found

    def classify_batch(self, requests):
        return [None] * len(requests)

@hookimpl
def register_classifiers(register):
    register(Counting())
"""


def test_beside_others_it_tells_how_well_classifiers_know_the_adapter(
    cli, base, adapter, own_folder, monkeypatch
):
    (own_folder / "plugins").mkdir()
    (own_folder / "plugins" / "counting.py").write_text(COUNTING)
    write_manifest(own_folder / "there" / "old", '[adapter]\nname = "good"\n[routing]\nexamples = ["a"]\n')
    write_manifest(own_folder / "there" / "legal", '[adapter]\nname = "legal"\n')
    folder = adapter()
    (folder / "adapter.toml").write_text('[adapter]\nname = "good"\n[routing]\nexamples = ["b", "c"]\n')
    command = ("adapters", "validate", folder)
    monkeypatch.setenv("LORA_ROUTER_LOAD_PLUGINS", "counting")
    done = cli(*command, "--beside", own_folder / "there")
    assert done.code == 0
    assert "  routing  2 examples, of good, legal\n" in done.out
    (read,) = json.loads(cli(*command, "--beside", own_folder / "there", "--json").out)
    assert read["beside"] == ["2 examples, of good, legal"]
    assert "examples, of" not in cli(*command).out


def write_manifest(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter.toml").write_text(text)


def test_of_each_adapter_the_highest_version_is_routed_to(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0"):
        write_manifest(tmp_path / "legal" / version, f'[adapter]\nname = "legal"\nversion = "{version}"\n')
    write_manifest(tmp_path / "code", '[adapter]\nname = "code"\n')
    write_manifest(tmp_path / "_draft", "no TOML")
    assert [(p.name, p.version) for p in read_profiles([tmp_path])] == [("code", "0"), ("legal", "1.10.0")]


def test_a_manifest_that_is_refused_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path / "legal", "no TOML")
    with pytest.raises(CliError, match=r"legal/adapter.toml: "):
        read_profiles([tmp_path])
