"""`divot export` from checkpoints: the weights after that step, whatever the run was trained on."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers.ranks import divot_on_ranks

AVERAGE = {"class_path": "divot_lightning.checkpoint.weight_average.WeightAverage", "init_args": {"decay": 0.9}}


@pytest.fixture(autouse=True)
def trust_the_stage(monkeypatch):
    monkeypatch.setenv("DIVOT_TRUSTED_PACKAGES", "tiny_stage")


def layer(folder):
    return load_file(folder / "layer" / "model.safetensors")


@pytest.mark.parametrize("callbacks", [[], [AVERAGE]], ids=["trained", "averaged"])
def test_a_checkpoint_of_the_last_step_gives_what_the_finished_run_has(divot, tiny, tmp_path, callbacks):
    tiny["trainer"]["callbacks"] = callbacks
    tiny["checkpoint"]["keep_all"] = True
    assert divot("fit", tiny) == 0
    assert divot("export", "runs/tiny", "--to", "whole") == 0
    assert divot("export", "runs/tiny/checkpoints/step_00000006", "--to", "last") == 0
    assert divot("export", "runs/tiny/checkpoints/step_00000004", "--to", "earlier") == 0
    whole, last, earlier = (layer(tmp_path / name) for name in ("whole", "last", "earlier"))
    assert all(torch.equal(whole[name], last[name]) for name in whole)
    assert not torch.equal(earlier["linear.weight"], last["linear.weight"])
    assert "after step 4" in (tmp_path / "earlier" / "README.md").read_text()


def test_a_half_finished_run_names_its_newest_checkpoint(divot, tiny, tmp_path, capsys):
    tiny["data"]["init_args"]["interrupt_at"] = 5
    assert divot("fit", tiny) != 0
    capsys.readouterr()
    assert divot("export", "runs/tiny", "--to", "out") == 2
    shown = capsys.readouterr().err
    assert "has not finished (stopped after step" in shown
    newest = max((tmp_path / "runs" / "tiny" / "checkpoints").iterdir())
    assert f"divot export runs/tiny/checkpoints/{newest.name} --to FOLDER" in shown
    assert len(shown.splitlines()) <= 5
    assert divot("export", f"runs/tiny/checkpoints/{newest.name}", "--to", "out") == 0


def test_a_component_that_the_checkpoint_lacks_is_refused(divot, tiny, tmp_path, capsys):
    assert divot("fit", tiny) == 0
    capsys.readouterr()
    words = ("runs/tiny/checkpoints/step_00000006", "--to", "out", "--components", "video_llm")
    assert divot("export", *words) == 2
    assert "has no video_llm; it has: layer" in capsys.readouterr().err
    assert divot("export", "runs/tiny/checkpoints/step_00000005", "--to", "out") == 2
    assert "is no complete checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_two_processes_with_sharded_weights_is_whole(divot, tiny, tmp_path):
    tiny["trainer"] |= {"strategy": "divot_zero3", "devices": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    divot_on_ranks(["fit", "--config", "tiny.yaml"], 2)
    assert divot("export", "runs/tiny/checkpoints/step_00000006", "--to", "out") == 0
    finished = layer(tmp_path / "runs" / "tiny")
    assert all(torch.equal(value, finished[name]) for name, value in layer(tmp_path / "out").items())
