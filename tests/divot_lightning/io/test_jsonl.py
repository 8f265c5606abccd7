"""Files of rows: a cut last line is left out, anything else that is no row is named, and so is a place to write."""

import pytest

from divot_lightning.errors import UserError
from divot_lightning.io.jsonl import LineFile, read_rows


def test_a_last_line_that_was_cut_off_is_left_out_and_removed_before_the_next_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert read_rows(path) == [{"a": 1}]
    file = LineFile(path)
    file.append([{"a": 2}])
    file.close()
    assert read_rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("line", ["oops", "3", "[]", "null", '"x"', "\udcff"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line.encode("utf-8", "surrogateescape") + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"line 2 of .*rows\.jsonl is no JSON object"):
        read_rows(path)


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be written: there is a folder where a file is needed"):
        LineFile(tmp_path).append([{"a": 1}])
