"""adapter_config.json by allow-list: honoured, without effect, or refused by name."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.registry.format.artifact import FolderRules, inspect_folder, read_artifact
from router.registry.format.lora_config import (
    HONOURED,
    INITS,
    REFUSED,
    WITHOUT_EFFECT,
    LoraSettings,
    parse_lora_config,
)
from router.registry.format.untrusted import FolderFinding, Severity
from tests.registry.tiny import BASE, CONFIG, VOCAB, write_adapter


def parse(**changes: Any) -> tuple[LoraSettings | None, tuple[FolderFinding, ...]]:
    return parse_lora_config(json.dumps({**CONFIG, **changes}).encode())


def codes(**changes: Any) -> list[str]:
    return [f.code for f in parse(**changes)[1]]


NON_DEFAULT: dict[str, Any] = {
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "megatron_config": {"a": 1},
    "megatron_core": "evil.module",
    "trainable_token_indices": [1],
    "use_dora": True,
    "velora_config": {"num_groups": 2},
    "use_qalora": True,
    "monteclora_config": {"num_samples": 8},
    "layer_replication": [[0, 2]],
    "lora_bias": True,
    "target_parameters": ["experts.gate_up_proj"],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"a": 1},
    "ensure_weight_tying": True,
}


def test_the_cases_below_cover_every_refused_field():
    assert NON_DEFAULT.keys() == REFUSED.keys()


@pytest.mark.parametrize(("field", "value"), NON_DEFAULT.items())
def test_what_cannot_be_honoured_is_refused_by_name_and_value(field, value):
    (finding,) = parse(**{field: value})[1]
    assert finding.code == "config-unsupported"
    assert finding.where == f"adapter_config.json {field}"
    assert "=" in finding.message
    assert [*codes(**{field: None}), *codes(**{field: False}), *codes(**{field: []})] == []


@pytest.mark.parametrize("init", [True, False, None, *sorted(INITS)])
def test_initialisations_that_leave_the_base_alone_are_accepted(init):
    assert [f for f in parse(init_lora_weights=init)[1] if f.severity is Severity.REFUSE] == []


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "PiSSA", "olora", "corda", "loftq"])
def test_initialisations_that_change_the_base_are_refused(init):
    assert codes(init_lora_weights=init) == ["init-changes-base"]


@pytest.mark.parametrize("init", ["new_init", 3, ["gaussian"], {}])
def test_unknown_initialisations_are_refused(init):
    assert codes(init_lora_weights=init) == ["config-value"]


@pytest.mark.parametrize("value", [0, -1, True, None, 4.5, "8", 1 << 40, [8], 10**400])
def test_rank_must_be_a_positive_whole_number(value):
    (finding,) = parse(r=value)[1]
    assert (finding.code, finding.where) == ("config-value", "adapter_config.json r")
    assert len(finding.message) < 200


@pytest.mark.parametrize("value", [0, -8, True, None, "8", 1e7])
def test_alpha_must_be_a_positive_finite_number(value):
    assert codes(lora_alpha=value) == ["config-value"]
    assert codes(alpha_pattern={"q_proj": value}) == ["config-value"]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_outside_json_are_syntax_errors(text):
    data = json.dumps(CONFIG).replace('"lora_alpha": 8', f'"lora_alpha": {text}').encode()
    settings, (finding,) = parse_lora_config(data)
    assert settings is None
    assert finding.code == "config-syntax"


@pytest.mark.parametrize("tokens", [[1], [0, 2**31 - 1], list(range(256))])
def test_invocation_tokens_of_an_activated_lora_are_honoured(tokens):
    settings, findings = parse(alora_invocation_tokens=tokens)
    assert settings is not None
    assert (settings.invocation_tokens, findings) == (tuple(tokens), ())


@pytest.mark.parametrize("nothing", [None, False, []])
def test_without_invocation_tokens_it_is_a_plain_lora_as_for_peft(nothing):
    settings, findings = parse(alora_invocation_tokens=nothing)
    assert settings is not None
    assert (settings.invocation_tokens, findings) == ((), ())


@pytest.mark.parametrize(
    "value",
    [True, 0, 7, "<s>", {"a": 1}, [True], [-1], [1.0], ["1"], [None], [[1]], [1] * 257, [2**31], [10**400]],
)
def test_invocation_tokens_must_be_a_short_list_of_token_ids(value):
    settings, (finding,) = parse(alora_invocation_tokens=value)
    assert settings is not None
    assert settings.invocation_tokens == ()
    assert (finding.code, finding.where) == ("config-value", "adapter_config.json alora_invocation_tokens")
    assert len(finding.message) < 200


@pytest.mark.parametrize(("tokens", "known"), [([VOCAB - 1], True), ([0, VOCAB], False)])
def test_invocation_tokens_must_be_the_bases(tokens, known, tmp_path):
    folder = write_adapter(tmp_path / "a", {"alora_invocation_tokens": tokens})
    inspection = inspect_folder(folder, FolderRules(BASE))
    assert inspection.invocation_tokens == tuple(tokens)
    assert [f.code for f in inspection.refusals] == ([] if known else ["vocabulary"])
    if known:
        artifact, _ = read_artifact(folder, FolderRules(BASE))
        assert artifact.invocation_tokens == tuple(tokens)


@pytest.mark.parametrize(
    "key", ["(([a-z._0-9])+)+$X", "q_proj|v_proj", "layers.[0-9]", r"\d", "", "a" * 257, ".*y", "^"]
)
def test_patterns_that_would_need_an_engine_are_refused_by_name(key):
    for field in ("rank_pattern", "alpha_pattern"):
        (finding,) = parse(**{field: {key: 4}})[1]
        assert (finding.code, finding.where) == ("config-pattern", f"adapter_config.json {field}")


def test_target_patterns_are_noted_and_not_read():
    settings, (finding,) = parse(target_modules="(([a-z._0-9])+)+$X")
    assert settings is not None
    assert settings.target_modules is None
    assert (finding.code, finding.severity) == ("config-pattern", Severity.NOTE)


@pytest.mark.parametrize("value", [True, 3, "value", ["x"], {"a": 1}, 1.5])
def test_unknown_fields_are_refused_unless_empty(value):
    (finding,) = parse(brand_new=value)[1]
    assert finding.code == "config-unknown-key"
    assert "'brand_new'" in finding.message
    assert codes(brand_new=None, other=False, more=[], text="", table={}) == []


def test_auto_mapping_is_accepted_only_as_peft_writes_it():
    written = {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }
    assert codes(auto_mapping=written) == []
    assert codes(auto_mapping={**written, "parent_library": "evil"}) == ["config-unsupported"]
    assert codes(auto_mapping={**written, "more": "evil"}) == ["config-unsupported"]


def test_nothing_named_in_the_file_is_imported(tmp_path, monkeypatch):
    marker = tmp_path / "imported"
    (tmp_path / "marker_module.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    mapping = {"base_model_class": "X", "parent_library": "marker_module"}
    config = {"auto_mapping": mapping, "megatron_core": "marker_module", "megatron_config": {"a": 1}}
    inspection = inspect_folder(write_adapter(tmp_path / "a", config), FolderRules(BASE))
    fields = {f.where.split()[-1] for f in inspection.refusals}
    assert fields == {"auto_mapping", "megatron_core", "megatron_config"}
    assert not marker.exists()
    assert "marker_module" not in sys.modules


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'"x"', b"\xff{}", b'{"r": 1, "r": 2}', b"[" * 100_000, b'{"a": ' * 9_999]
)
def test_broken_files_are_one_syntax_finding(data):
    settings, (finding,) = parse_lora_config(data)
    assert settings is None
    assert finding.code == "config-syntax"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(sorted(HONOURED | WITHOUT_EFFECT.keys() | REFUSED.keys()))


@pytest.mark.slow
@given(st.dictionaries(fields | st.text(max_size=10), json_values, max_size=12))
def test_any_json_gives_findings_and_nothing_else(document):
    settings, findings = parse_lora_config(json.dumps({**CONFIG, **document}).encode())
    assert all(isinstance(f, FolderFinding) and f.message.isprintable() for f in findings)
    if settings is not None:
        assert settings.rank_at("model.layers.0.mlp.up_proj") > 0
        assert settings.scaling_at("model.layers.0.mlp.up_proj") > 0


@given(st.binary(max_size=200))
def test_any_bytes_give_findings_and_nothing_else(data):
    _, findings = parse_lora_config(data)
    assert findings
