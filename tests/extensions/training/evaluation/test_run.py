"""A whole evaluation on a tiny base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from router.engine.base import BaseInfo
from router.errors import AdapterRejected, ConfigError
from router.extensions.training.evaluation import evaluate
from router.extensions.training.evaluation.report import report_card, report_page
from router.extensions.training.evaluation.subject import read_manifest
from router.registry.folders import weights_sha256
from router.registry.format.manifest import read_report
from router.registry.gate import judge
from tests.extensions.training.evaluation.test_bias import CASES

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "adapters" / "colours", tmp_path / "adapters" / "colours"))


def judged(folder: Path, trained: Path, rows: int | None = None) -> dict[str, Any]:
    said: list[str] = []
    [report] = evaluate([folder], recipes=trained / "recipes", rows=rows, device="cpu", say=said.append)
    assert len(said) == 6
    return report


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("whole") / "adapters" / "colours"
    shutil.copytree(trained / "adapters" / "colours", place)
    return place, judged(place, trained)


def test_report_card(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, report = whole
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["schema"] == 2
    assert list(report["arms"]) == ["base", "base_with_examples", "adapter"]
    assert report["data"]["asked"] == report["data"]["rows"] == 9
    arms = report["arms"]
    assert arms["adapter"]["loss_per_gold_token"] < arms["base"]["loss_per_gold_token"]
    assert arms["base_with_examples"]["prompt_tokens"] > 3 * arms["base"]["prompt_tokens"]
    assert report["references"] == {"always the commonest label": pytest.approx(1 / 3, abs=1e-3)}
    assert set(report["splits"]) == {"train", "valid", "test"}


def test_gains_are_differences_of_arms(whole: tuple[Path, dict[str, Any]]) -> None:
    arms, gains = whole[1]["arms"], whole[1]["gains"]
    for name in ("base", "base_with_examples"):
        gain = gains[f"adapter - {name}"]
        for key in ("score", "format_blind"):
            apart = arms["adapter"][key]["value"] - arms[name][key]["value"]
            assert gain[key]["value"] == pytest.approx(apart, abs=1e-3)
            assert gain[key]["low"] <= gain[key]["value"] <= gain[key]["high"]
        apart = arms["adapter"]["loss_per_gold_token"] - arms[name]["loss_per_gold_token"]
        assert gain["loss_per_gold_token"]["value"] == pytest.approx(apart, abs=1e-3)


def test_efficiency_is_of_single_requests(whole: tuple[Path, dict[str, Any]]) -> None:
    section, arms = whole[1]["efficiency"], whole[1]["arms"]
    assert section["rows"] == 9
    shots, adapter = (section["arms"][name] for name in ("base_with_examples", "adapter"))
    assert shots["prompt_tokens"] == arms["base_with_examples"]["prompt_tokens"]
    assert shots["cached_tokens"] > adapter["cached_tokens"]
    assert adapter["points"] == arms["adapter"]["score"]["value"]


def test_sections_of_others_stand_in_the_report(whole: tuple[Path, dict[str, Any]]) -> None:
    report = whole[1]
    assert report["generalization"]["sets"] == report["regressions"] == []  # no other recipe is there
    assert "Generalization: not measured" in report_page(report)
    assert "bias" not in report  # nor its file


def test_page_shows_every_number(folder: Path, trained: Path) -> None:
    report = judged(folder, trained, rows=5)
    text = (folder / "REPORT.md").read_text()
    assert "5 of 9 rows" in text
    assert "`lora-router adapters evaluate colours --rows 5`" in text
    score = report["arms"]["adapter"]["score"]
    interval = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
    assert text.splitlines()[2].startswith(f"**{interval} exact match against ")
    assert text.splitlines()[2].endswith(" examples, n=5.**")
    for arm in report["arms"].values():
        for number in (arm["score"]["value"], arm["format_blind"]["high"]):
            assert f"{number:.3f}" in text
        assert str(arm["loss_per_gold_token"]) in text
    assert report["samples"][0]["prompt"] in text
    for title in ("Accuracy", "Efficiency", "Overfitting", "Generalization", "Answers"):
        assert f"\n## {title}\n" in text


def test_page_says_what_speaks_against_the_adapter(whole: tuple[Path, dict[str, Any]]) -> None:
    report = json.loads(json.dumps(whole[1]))
    assert "No regression beyond the margin" in report_page(report)
    report["gains"]["adapter - base"]["score"] = {"value": 0.1, "low": -0.1, "high": 0.3}
    report["data"]["asked"] = 40
    numbers = {"value": 0.3, "low": 0.2, "high": 0.4, "margin": 0.1}
    report["regressions"] = [{"what": "loss on general text", **numbers, "worse": True}]
    text = report_page(report)
    assert "The gain adapter - base is not shown: its interval does not exclude zero" in text
    assert "a gain of this size takes about 161 rows." in text
    assert "It makes worse, beyond the margin: loss on general text." in text


def test_adapters_share_a_base_and_leave_it_as_it_was(folder: Path, trained: Path) -> None:
    twin = Path(shutil.copytree(folder, folder.parent / "twin"))
    first, second = evaluate(
        [folder, twin], recipes=trained / "recipes", rows=5, device="cpu", say=lambda _: None
    )
    assert first["arms"] == second["arms"]
    assert first["splits"] == second["splits"]
    assert (twin / "REPORT.md").is_file()


def test_names_and_folders(folder: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no adapter folder 'colour', here or .*did you mean 'colours'\?"):
        evaluate(["colour"], adapters=folder.parent, recipes=trained / "recipes")
    with pytest.raises(ConfigError, match="no recipe of colours: looked for"):
        evaluate(["colours"], adapters=folder.parent, recipes=tmp_path)
    (folder / "adapter.toml").write_text("[adaptor]")
    with pytest.raises(AdapterRejected, match="adaptor"):
        evaluate([folder], recipes=trained / "recipes")


def test_adapter_of_another_base_is_refused(folder: Path, trained: Path) -> None:
    manifest = folder / "adapter.toml"
    manifest.write_text(manifest.read_text().replace(read_manifest(folder).base.digest, "0" * 64))
    with pytest.raises(AdapterRejected, match="digest"):
        evaluate([folder], recipes=trained / "recipes", device="cpu")
    assert not (folder / "report.json").exists()


def test_data_and_recipe_must_fit(folder: Path, trained: Path, tmp_path: Path) -> None:
    recipes = Path(shutil.copytree(trained / "recipes", tmp_path / "recipes"))
    recipe = recipes / "colours.toml"
    text = recipe.read_text()
    recipe.write_text(text + '[evaluation]\nmetric = "execution"\n')
    with pytest.raises(ConfigError, match=r"test\.jsonl:1 has no 'schema'"):
        evaluate([folder], recipes=recipes)
    recipe.write_text(text.replace('name = "colours"', 'name = "colors"'))
    with pytest.raises(ConfigError, match=r"colours\.toml is the recipe of colors, not of colours"):
        evaluate([folder], recipes=recipes)
    recipe.write_text(text)
    (recipes / "test.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"data\.test: .*test\.jsonl is not there"):
        evaluate([folder], recipes=recipes)


def test_bias_is_there_where_its_file_is(folder: Path, trained: Path, tmp_path: Path) -> None:
    recipes = Path(shutil.copytree(trained / "recipes", tmp_path / "recipes"))
    (recipes / "bias").mkdir()
    (recipes / "bias" / "colours.toml").write_text(CASES)
    [report] = evaluate([folder], recipes=recipes, rows=3, device="cpu", say=str)
    assert report["bias"]["groups"] == 6
    assert "\n## Bias\n" in (folder / "REPORT.md").read_text()
    told = str(report_card.__doc__)
    assert [key for key in report["bias"] if f"`{key}`" not in told] == []


def test_bare_folder_gets_a_report_that_the_gate_reads(trained: Path, tmp_path: Path) -> None:
    bare = tmp_path / "colours"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained / "adapters" / "colours" / name, bare)
    report, read = judged(bare, trained), read_report(bare)
    assert not isinstance(read, str | None)
    base = BaseInfo("base", report["base"]["digest"], "", "", "cpu", 1, 1, {})
    gain = report["gains"]["adapter - base"]["score"]
    assert judge(read, weights_sha256(bare), base).passed is (gain["low"] > 0)


def test_what_a_section_cannot_use_is_said_first(folder: Path, trained: Path, tmp_path: Path) -> None:
    recipes = Path(shutil.copytree(trained / "recipes", tmp_path / "recipes"))
    said: list[str] = []

    def refused(match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            evaluate([folder], recipes=recipes, device="cpu", say=said.append)
        assert said == []

    (recipes / "bias").mkdir()
    (recipes / "bias" / "colours.toml").write_text("texts = []")
    refused("bias/colours.toml")
    (recipes / "bias" / "colours.toml").unlink()
    (recipes / "other.toml").write_text("[adaptor]")
    refused("other.toml: .*unknown key adaptor")


def test_every_key_is_documented(whole: tuple[Path, dict[str, Any]]) -> None:
    told = str(report_card.__doc__)
    report = whole[1]
    inner = [*report["data"], *report["arms"]["base"], *report["efficiency"]["arms"]["adapter"]]
    assert not [key for key in (*report, *inner) if f"`{key}`" not in told]


@pytest.mark.slow
def test_a_base_in_8_bits_is_told(folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_ROUTER_QUANTIZE", "int8")
    [report] = evaluate([folder], recipes=trained / "recipes", rows=3, device="cpu", say=str)
    assert report["engine"]["weights"] == "int8"
    assert report["command"].startswith("LORA_ROUTER_QUANTIZE=int8 lora-router adapters evaluate ")
    assert ", weights int8, packed layers" in (folder / "REPORT.md").read_text()
