import json

import pytest

from router.cli.base_files import find_base, read_base
from tests.cli.tiny import write_adapter, write_base


@pytest.fixture
def base(own_folder):
    return write_base(own_folder / "tiny-base")


@pytest.fixture
def adapter(own_folder):
    def make(name="good", **spoilt):
        return write_adapter(own_folder / name, **spoilt)

    return make


def test_a_good_folder_is_told_with_its_facts(cli, base, adapter):
    done = cli("adapters", "validate", adapter(), "--model", base)
    assert done.code == 0
    assert "good: ok  good@" in done.out
    assert "rank 2  2 sites: q_proj, up_proj" in done.out


def test_it_tells_from_which_tokens_on_an_activated_lora_acts(cli, base, adapter):
    late, foreign = adapter("late"), adapter("foreign")
    for folder, tokens in ((late, [1, 2]), (foreign, [1, 10**6])):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"alora_invocation_tokens": tokens}))
    done = cli("adapters", "validate", late, "--model", base)
    assert done.code == 0
    assert "acts from the tokens 1, 2 on" in done.out
    refused = cli("adapters", "validate", foreign, "--model", base)
    assert refused.code == 1
    assert "vocabulary" in refused.out


def test_all_that_is_wrong_is_told_at_once_for_all_folders(cli, base, adapter):
    spoilt = adapter("spoilt", b=float("nan"))
    (spoilt / "adapter.toml").write_text('[adapter]\nversion = "no spaces please"\n[prompts]\n')
    done = cli("adapters", "validate", adapter(), spoilt, "--model", base)
    assert done.code == 1
    assert "good: ok" in done.out
    assert "spoilt: REFUSED" in done.out
    assert "manifest-unknown-key" in done.out
    assert "manifest-value" in done.out


def test_a_constraint_is_checked_beside_other_faults(cli, base, adapter):
    folder = adapter("idle", b=0.0)
    (folder / "adapter.toml").write_text('[generation]\nregex = "(a"\n')
    done = cli("adapters", "validate", folder, "--model", base)
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
    done = cli("adapters", "validate", folder, "--model", base)
    assert done.code == 1
    assert "refuse  constraint-refused  adapter.toml [generation] " in done.out
    assert told in done.out


@pytest.mark.parametrize("given", ['regex = "a+"', 'choices = ["a", "b"]', 'from_prompt = "sql"'])
def test_a_constraint_that_compiles_is_accepted(cli, base, adapter, given):
    folder = adapter("held")
    (folder / "adapter.toml").write_text(f"[generation]\n{given}\n")
    done = cli("adapters", "validate", folder, "--model", base)
    assert done.code == 0
    assert "constraint-refused" not in done.out


def test_an_adapter_that_does_nothing_is_refused(cli, base, adapter):
    done = cli("adapters", "validate", adapter("idle", b=0.0), "--model", base, "--json")
    (report,) = json.loads(done.out)
    assert done.code == 1
    assert not report["ok"]
    assert [f["code"] for f in report["findings"] if f["severity"] == "refuse"] == ["no-effect"]


def test_modules_are_compared_with_the_base(cli, base, adapter):
    foreign = adapter("foreign", modules={"model.layers.9.self_attn.q_proj": (8, 8)})
    assert cli("adapters", "validate", foreign, "--model", base).code == 1
    done = cli("adapters", "validate", foreign, "--no-base")
    assert done.code == 0
    assert "were not compared with a base" in done.out


def test_a_base_without_weights_is_a_misuse(cli, base, adapter):
    (base / "model.safetensors").unlink()
    done = cli("adapters", "validate", adapter(), "--model", base)
    assert done.code == 2
    assert "--no-base" in done.err


def test_the_digest_is_read_only_where_a_manifest_pins_it(cli, base, adapter, monkeypatch):
    monkeypatch.setattr("router.cli.base_files.base_digest_of", lambda *_: "ab" * 32)
    pinned = adapter("pinned")
    (pinned / "adapter.toml").write_text(f'[base]\ndigest = "{"cd" * 32}"\n')
    done = cli("adapters", "validate", pinned, "--model", base)
    assert done.code == 1
    assert "other-base" in done.out
    (pinned / "adapter.toml").write_text(f'[base]\ndigest = "{"ab" * 32}"\n')
    assert cli("adapters", "validate", pinned, "--model", base).code == 0


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
