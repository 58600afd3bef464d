"""The 22 variants and the trainers' folders: accepted, normalised or refused, and never anything else."""

from __future__ import annotations

import pytest

from router.engine.base import AdapterArtifact
from router.errors import AdapterRejected
from router.registry.format.artifact import FolderRules, read_artifact, validate_folder
from router.registry.format.untrusted import Severity
from tests.registry.format.corpus import VARIANTS, Variant
from tests.registry.format.peft_folders import base_info, save, tiny_llama, train
from tests.registry.format.trainers import TRAINERS

ALL = VARIANTS + TRAINERS


@pytest.fixture(scope="module")
def base():
    return base_info(tiny_llama())


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return save(tmp_path_factory.mktemp("clean") / "adapter", train())


def same_sites(artifact: AdapterArtifact, clean: AdapterArtifact, variant: Variant) -> None:
    """Every site is there; where only names were changed, with the same weights."""
    assert artifact.sites.keys() == clean.sites.keys()
    assert {s.scaling for s in artifact.sites.values()} == {2.0}
    if variant.expect == "keys-normalised":
        for site, delta in clean.sites.items():
            assert bytes(artifact.sites[site].b.data) == bytes(delta.b.data)


@pytest.mark.parametrize("variant", ALL, ids=lambda v: v.name)
def test_each_folder_gets_its_finding(variant, base, clean, tmp_path):
    folder = tmp_path / "adapter"
    variant.build(folder, clean)
    report = validate_folder(folder, FolderRules(base))
    assert report.ok == variant.accepted, report.findings
    if variant.accepted:
        same_sites(
            read_artifact(folder, FolderRules(base))[0], read_artifact(clean, FolderRules(base))[0], variant
        )
    if not variant.expect:
        assert report.findings == ()
        return
    severity = Severity.NOTE if variant.accepted else Severity.REFUSE
    found = [f for f in report.findings if f.code == variant.expect and f.severity is severity]
    text = " ".join(str(f) for f in found)
    assert found
    assert [word for word in variant.words if word not in text] == []


def test_untrained_adapters_change_nothing_and_are_refused(base, tmp_path):
    model = train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    (refusal,) = validate_folder(save(tmp_path / "a", model), FolderRules(base)).refusals
    assert refusal.code == "no-effect"


def test_whole_matrices_are_refused_also_where_they_equal_the_bases(base, tmp_path):
    folder = save(tmp_path / "a", train(), save_embedding_layers=True)
    with pytest.raises(AdapterRejected, match=r"embed_tokens \(64 rows\).*adapters convert"):
        read_artifact(folder, FolderRules(base))
