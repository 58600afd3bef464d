"""adapter.toml and probes.jsonl: what is read, and what is refused with the place."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.names import is_name, is_version
from router.registry.format.manifest import Manifest, Match, Probe, parse_manifest, parse_probes
from router.registry.format.untrusted import Code, FolderFinding
from router.types import Constraint, LabelSettings, PromptTemplate, Sampling

FULL = """
[adapter]
name = "medical"
version = "1.2.0-rc.1+cpu"
description = "Answers medical questions – short"
domain = "medical"
task = "question-answering"
license = "Apache-2.0"
[base]
model = "HuggingFaceTB/SmolLM2-135M-Instruct"
digest = "sha256:ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef0123456789"
[prompt]
system = "You are a doctor."
template = "Question: {prompt}\\nAnswer:"
[generation]
max_tokens = 64
temperature = 0
top_p = 0.5
seed = 7
stop = ["\\n\\n"]
[routing]
examples = ["What helps against migraine?"]
negative_examples = ["What is a lease?"]
keywords = ["dose", "symptom"]
"""


def found(text: str, folder: str = "folder") -> list[tuple[str, str]]:
    return [(f.code, f.message) for f in parse_manifest(text.encode(), folder)[1]]


def codes(text: str) -> list[str]:
    return [code for code, _ in found(text)]


def test_a_full_manifest():
    manifest, findings = parse_manifest(FULL.encode(), "folder")
    assert findings == ()
    assert (manifest.name, manifest.version, manifest.task) == (
        "medical",
        "1.2.0-rc.1+cpu",
        "question-answering",
    )
    assert manifest.base.digest == "abcdef0123456789" * 4
    assert manifest.prompt == PromptTemplate("You are a doctor.", "Question: {prompt}\nAnswer:")
    assert manifest.generation == Sampling(max_tokens=64, temperature=0.0, top_p=0.5, seed=7, stop=("\n\n",))
    profile = manifest.profile()
    assert profile.examples == ("What helps against migraine?",)
    assert profile.keywords == ("dose", "symptom")


def test_without_a_manifest_everything_has_a_default():
    assert parse_manifest(None, "my-adapter") == (Manifest(name="my-adapter"), ())
    assert parse_manifest(b"", "my-adapter") == (Manifest(name="my-adapter"), ())


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Llama-LoRA_v2", "llama-lora_v2"),
        ("my adapter", "my-adapter"),
        ("..hidden", "hidden"),
        ("base", "base-adapter"),
        ("é" * 9 + "x", "x"),
    ],
)
def test_folder_names_are_normalised_and_that_is_said(folder, name):
    manifest, (note,) = parse_manifest(None, folder)
    assert manifest.name == name
    assert (note.code, note.severity) == ("name-normalised", "note")


def test_a_folder_name_without_usable_characters_is_refused():
    manifest, (finding,) = parse_manifest(None, "日本\udcff")
    assert (manifest.name, finding.code) == ("", "name-invalid")
    finding.message.encode()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[adaptr]\n", "'adapter'"),
        ("[adapter]\nverson = '1'\n", "'version'"),
        ("[generation]\ntemprature = 1\n", "'temperature'"),
        ("[routing]\nzzz = []\n", "examples, negative_examples, keywords"),
        ("zzz = 1\n", "adapter, base, prompt, generation, labels, routing"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(text, hint):
    ((code, message),) = found(text)
    assert code == "manifest-unknown-key"
    assert hint in message


@pytest.mark.parametrize(
    "name", ["base", "../x", "A", "a/b", "", "-a", ".a", "a" * 64, "a b", "a\\u0000", "ä", "a\\n"]
)
def test_names_are_checked(name):
    assert codes(f'[adapter]\nname = "{name}"\n') == ["manifest-value"]


@pytest.mark.parametrize("version", ["1/2", "-1", "v 1", "1" * 64, "ü", "..", "1\\n"])
def test_versions_are_checked(version):
    assert codes(f'[adapter]\nversion = "{version}"\n') == ["manifest-value"]


OUT_OF_RANGE = """\
max_tokens = 0
max_tokens = 1.5
max_tokens = true
max_tokens = 2147483648
min_tokens = -1
temperature = 2.1
temperature = -0.1
temperature = nan
temperature = inf
temperature = '1'
top_p = 0
top_p = 1.01
top_k = -1
min_p = 1.1
repetition_penalty = 0
frequency_penalty = 3
presence_penalty = -2.5
seed = -1
seed = 9223372036854775808
logprobs = 21
stop = 'x'
stop = ['']
stop = [1]
""".splitlines()


@pytest.mark.parametrize(
    "line",
    [*OUT_OF_RANGE, f"stop = ['{'x' * 257}']", f"stop = {['x'] * 17}", "min_tokens = 5\nmax_tokens = 4"],
)
def test_sampling_out_of_range_is_refused(line):
    assert codes(f"[generation]\n{line}\n") == ["manifest-value"]


@pytest.mark.parametrize(
    "text",
    [
        "[prompt]\ntemplate = 'no place'",
        "[prompt]\ntemplate = ''",
        "[prompt]\ntemplate = '{prompt}{prompt}'",
        "[prompt]\ntemplate = 3",
        "prompt = 'x {prompt}'",
        f"[prompt]\ntemplate = '{{prompt}}{'x' * 16_000}'",
        '[adapter]\ndescription = "two\\nlines"',
        '[adapter]\nlicense = "\\u001b[31m"',
        "[base]\ndigest = 'abc'",
        "[routing]\nexamples = 'x'",
        "[routing]\nexamples = ['  ']",
        f"[routing]\nkeywords = ['{'x' * 101}']",
        f"[routing]\nkeywords = {['x'] * 501}",
        "[adapter]\nname = 1",
        "[adapter]\ndomain = 'Two Words'",
        "adapter = 3",
        "[[adapter]]",
    ],
)
def test_bad_values_are_refused(text):
    assert codes(text) == ["manifest-value"]


@pytest.mark.parametrize(
    "template",
    [
        "{{prompt}}",
        "{ prompt } {prompt}",
        "{{7*7}} {prompt}",
        "{prompt.__class__} {prompt}",
        "{0} %s ${x} {prompt}",
        "{% raw %}{prompt}",
    ],
)
def test_templates_stay_literal(template):
    manifest, findings = parse_manifest(f"[prompt]\ntemplate = '{template}'".encode(), "a")
    assert findings == ()
    assert manifest.prompt.template == template


@pytest.mark.parametrize(
    ("template", "at"),
    [("a {prompt} b {prompt} c {prompt}", 14), ("{{prompt}}{{prompt}}", 12), ("{prompt}" * 1_990, 9)],
)
def test_a_second_place_for_the_prompt_is_refused_with_its_position(template, at):
    """Each place is one more copy of what a request brings."""
    manifest, findings = parse_manifest(f"[prompt]\ntemplate = '{template}'".encode(), "a")
    assert [(f.code, f.where) for f in findings] == [("manifest-value", "adapter.toml [prompt] template")]
    assert f"again at character {at}" in findings[0].message
    assert manifest.prompt.template == "{prompt}"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"[adapter",
        b"a = 1\na = 2",
        b"[adapter]\n[adapter]",
        b"x = 99999999999999999999" * 300,
        b"x = " + b"9" * 5_000,
        b"x = 0x" + b"f" * 100_000,
        b"x = " + b"[" * 100_000,
        b"x = " + b"{a=" * 50_000,
        b"a." * 100_000 + b"a = 1",
        b"[" + b"a." * 100_000 + b"a]",
        b'"a".' * 50_000 + b"a = 1",
        b"#" * 300_000,
        b"x = '''" + b"a." * 100_000,
        b'x = """' + b'\\"' * 100_000 + b"\\",
        b'x = "' + b"\\u0041" * 40_000,
    ],
    ids=range(16),
)
def test_hostile_text_is_refused_quickly(data):
    times = []
    for _ in range(3):
        start = time.process_time()
        _, findings = parse_manifest(data, "a")
        times.append(time.process_time() - start)
    assert findings
    assert all(len(f.message) < 400 for f in findings)
    assert min(times) < 0.1


def test_dots_in_strings_and_comments_are_no_keys():
    text = f"# {'a.' * 50}\n[routing]\nexamples = ['''{'a.' * 50}''', \"{'b.' * 50}\", '{'c.' * 50}']\n"
    assert codes(text) == []


lines = st.sampled_from(FULL.splitlines()) | st.text(max_size=30)


@given(st.lists(lines, max_size=30))
def test_any_lines_give_findings_and_nothing_else(parts):
    manifest, findings = parse_manifest("\n".join(parts).encode("utf-8", "surrogateescape"), "a")
    assert all(isinstance(f, FolderFinding) and f.message.isprintable() for f in findings)
    assert is_name(manifest.name)
    assert is_version(manifest.version)
    assert "{prompt}" in manifest.prompt.template


@given(st.binary(max_size=100))
def test_any_bytes_give_findings_and_nothing_else(data):
    manifest, _ = parse_manifest(data, "a")
    assert is_name(manifest.name)


@pytest.mark.parametrize(
    ("line", "constraint"),
    [
        ('choices = ["yes", "no"]', Constraint("choices", choices=("yes", "no"))),
        ('regex = "[a-z]+"', Constraint("regex", "[a-z]+")),
        ('json_schema = \'{"type": "object"}\'', Constraint("json_schema", '{"type": "object"}')),
        ("grammar = 'start: \"a\"'", Constraint("grammar", 'start: "a"')),
        ('quote = "a text"', Constraint("quote", "a text")),
        ('from_prompt = "quote"', Constraint("from_prompt", "quote")),
    ],
)
def test_what_every_answer_must_look_like(line, constraint):
    manifest, found = parse_manifest(f"[generation]\n{line}\n".encode(), "folder")
    assert manifest.generation.constraint == constraint
    assert not found


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("choices = []", "1 to 1024 entries"),
        ('choices = ["a", ""]', "1 to 1024 bytes"),
        ('choices = ["a", "a"]', "same as entry 0"),
        ('choices = "a"', "must be a list, is 'a'"),
        ("choices = [1]", "must be a string, is 1"),
        ('json_schema = "{"', "is not JSON"),
        ("json_schema = {}", "must be a string"),
        ('regex = "a{9999}"', "repeats more than"),
        ('regex = "a"\nchoices = ["b"]', "one constraint"),
        ('grammar = "start: <|end|>"', "special token"),
        ('from_prompt = "A B"', "must be the name of a template"),
        ("constraint = 1", "unknown key"),
        ("unconstrained = true", "unknown key"),
    ],
)
def test_a_constraint_that_cannot_be(lines, said):
    manifest, found = parse_manifest(f"[generation]\n{lines}\n".encode(), "folder")
    assert manifest.generation.constraint is None
    assert any(said in finding.message for finding in found), found


# -- probes.jsonl: lines with prompt and expected answer


def test_probes_are_read_with_their_defaults():
    data = (
        b'{"prompt": "a", "expect": "b"}\n\n{"prompt": "c", "expect": "d", "match": "exact", "max_tokens": 5}'
    )
    probes, findings = parse_probes(data)
    assert findings == ()
    assert probes == (Probe("a", "b", Match.PREFIX, 32), Probe("c", "d", Match.EXACT, 5))
    assert parse_probes(b"") == ((), ())


@pytest.mark.parametrize(
    "line",
    [
        "[]", "{", "{}", '{"prompt": "a"}', '{"prompt": "", "expect": "b"}', '{"prompt": "a", "expect": " "}',
        '{"prompt": 1, "expect": "b"}', '{"prompt": "a", "expect": "b", "match": "regex"}',
        '{"prompt": "a", "expect": "b", "match": []}',
        f'{{"prompt": "{"x" * 4_001}", "expect": "b"}}',
        '{"prompt": "a", "expect": "b", "max_tokens": 0}',
        '{"prompt": "a", "expect": "b", "max_tokens": true}',
        '{"prompt": "a", "expect": "b", "max_tokens": 129}',
        '{"prompt": "a", "expect": "b", "expct": 1}', '{"prompt": "a", "prompt": "b", "expect": "b"}',
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_the_others_are_kept(line):
    good = '{"prompt": "a", "expect": "b"}'
    probes, (finding,) = parse_probes(f"{good}\n{line}\n{good}".encode())
    assert len(probes) == 2
    assert (finding.code, finding.where) == ("probe-invalid", "probes.jsonl line 2")


def test_too_many_are_refused():
    probes, (finding,) = parse_probes(b'{"prompt": "a", "expect": "b"}\n' * 257)
    assert probes == ()
    assert "257" in finding.message


@pytest.mark.parametrize(
    ("match", "answer", "passes"),
    [
        ("exact", " yes\n", True), ("exact", "yes, it is", False), ("prefix", "yes, it is", True),
        ("prefix", "oh yes", False), ("contains", "oh yes", True), ("contains", "no", False),
    ],
)  # fmt: skip
def test_answers_are_compared_as_asked(match, answer, passes):
    assert Probe("a", "yes ", Match(match)).passes(answer) is passes


@given(st.binary(max_size=200))
def test_any_bytes_as_probes_give_findings_and_nothing_else(data):
    probes, findings = parse_probes(data)
    assert len(probes) + len(findings) == len([line for line in data.split(b"\n") if line.strip()])


def test_labels_have_a_temperature() -> None:
    choices = '[generation]\nchoices = ["a", "b"]\n'
    manifest, found = parse_manifest(f"{choices}[labels]\ntemperature = 2\nalways = true\n".encode(), "f")
    assert not found
    assert manifest.labels == LabelSettings(True, 2.0)


@pytest.mark.parametrize(
    "text",
    [
        'choices = ["a", "b"]\n[labels]\ntemperature = 0',
        'choices = ["a", "b"]\n[labels]\ntemperature = nan',
        'choices = ["a", "b"]\n[labels]\ntemperature = "1"',
        'choices = ["a", "b"]\n[labels]\nalways = 1',
        "max_tokens = 3\n[labels]\nalways = true",
    ],
)
def test_labels_that_cannot_be_are_refused(text: str) -> None:
    manifest, found = parse_manifest(f"[generation]\n{text}\n".encode(), "folder")
    assert [finding.code for finding in found] == [Code.MANIFEST_VALUE]
    assert manifest.labels == LabelSettings()
