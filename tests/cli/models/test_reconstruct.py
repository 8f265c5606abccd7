"""`divot reconstruct` checks its arguments before anything is loaded."""

import pytest

from divot_lightning.cli.reconstruct import main
from divot_lightning.errors import UserError


def test_number_of_clips_is_checked(tmp_path):
    with pytest.raises(UserError, match="--num is 0"):
        main(["run", "input", "--output", str(tmp_path), "--num", "0"])


def test_a_template_which_would_have_no_effect_is_no_option(tmp_path):
    with pytest.raises(UserError, match="unrecognized arguments: --template chat"):
        main(["run", "input", "--output", str(tmp_path), "--template", "chat"])


def test_missing_run_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        main([str(tmp_path / "nowhere"), "x.mp4", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
