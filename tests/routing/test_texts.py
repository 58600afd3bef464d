"""Small text helpers."""

from pathlib import Path

from router.classifiers.regression import digest_of


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "background.txt"
    path.write_text("# talk\nhello\n")
    first = digest_of(path)
    assert digest_of(path) == first
    path.write_text("# talk\nhello you\n")
    assert digest_of(path) != first
