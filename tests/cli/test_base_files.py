import pytest

from router.cli.base_files import find_base, read_base
from router.errors import ConfigError
from tests.cli.tiny import MODULES, write_base


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base")


def test_linear_modules_are_sites_and_tables_are_not(base):
    read = read_base(base, "tiny", with_digest=False)
    assert read.sites == MODULES
    assert (read.architecture, read.vocab_size, read.digest) == ("LlamaForCausalLM", 32, "")


def test_a_known_base_that_was_not_fetched_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_base("smollm2-135m-instruct") is None


def test_a_base_without_safetensors_is_named(base):
    (base / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no safetensors"):
        read_base(base, "tiny", with_digest=False)
