"""Small text helpers."""

from pathlib import Path

from router.classifiers.regression import file_digest


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "background.txt"
    path.write_text("# talk\nhello\n")
    first = file_digest(path)
    assert file_digest(path) == first
    path.write_text("# talk\nhello you\n")
    assert file_digest(path) != first
