"""Tests that a page shows fail the test that runs them."""

from pathlib import Path

import pytest

from tests.helpers.nested_pytest import passed_tests


def test_names_of_tests_are_returned_and_one_that_fails_or_is_skipped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "test_good_one.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    (tmp_path / "test_bad_one.py").write_text("def test_c(): assert 1 == 2\n")
    (tmp_path / "test_skipped_one.py").write_text("import pytest\ndef test_d(): pytest.skip('no such part')\n")
    assert [name.split("::")[1] for name in passed_tests("test_good_one.py")] == ["test_a", "test_b"]
    with pytest.raises(AssertionError, match="assert 1 == 2"):
        passed_tests("test_bad_one.py")
    with pytest.raises(AssertionError, match="no such part"):
        passed_tests("test_skipped_one.py")
    (tmp_path / "test_empty_one.py").touch()
    with pytest.raises(AssertionError):
        passed_tests("test_empty_one.py")
