"""`divot quickstart` refuses folders of others and other settings before anything runs."""

import json

import pytest

from divot_lightning.cli import quickstart
from divot_lightning.errors import UserError
from divot_lightning.experiments.quickstart import plan
from divot_lightning.experiments.runner import runner
from divot_lightning.experiments.runner.steps import Step


def test_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match=str(tmp_path)):
        quickstart.main(["--folder", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_folder_of_a_smoke_run_is_refused_for_the_real_one(tmp_path):
    (tmp_path / "quickstart.json").write_text(json.dumps(plan.FAST.as_json()))
    with pytest.raises(UserError, match="held_out 8 instead of 256"):
        quickstart.main(["--folder", str(tmp_path)])


def test_wrong_number_of_jobs_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="--jobs is 0"):
        quickstart.main(["--folder", str(tmp_path / "new"), "--jobs", "0"])
    assert not (tmp_path / "new").exists()


def test_failed_step_is_reported_and_settings_are_kept(tmp_path, monkeypatch):
    steps = [Step("data", ("/bin/sh", "-c", "echo no space left; exit 3"))]
    monkeypatch.setattr(plan, "make_plan", lambda folder, settings: steps)
    with pytest.raises(UserError, match="'data' failed with exit status 3:\nno space left"):
        quickstart.main(["--folder", str(tmp_path / "new"), "--fast"])
    assert json.loads((tmp_path / "new" / "quickstart.json").read_text()) == plan.FAST.as_json()
    assert runner.read_record(tmp_path / "new", "data") is not None


@pytest.mark.parametrize(
    ("heads", "message"),
    [(["gmm", "gmn"], "gmn"), (["mse", "diffusion"], "lacks gmm"), (["gmm", "GMMHead"], "GMMHead.*short name")],
)
def test_heads_that_cannot_be_compared_are_refused_and_nothing_is_written(tmp_path, heads, message):
    with pytest.raises(UserError, match=message):
        quickstart.main(["--folder", str(tmp_path / "new"), "--heads", *heads])
    assert not (tmp_path / "new").exists()
