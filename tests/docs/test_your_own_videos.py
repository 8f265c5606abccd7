"""What docs/your_own_videos.md says about its recipe, and about the files that it names, is so."""

import re
from pathlib import Path

import pytest
import yaml

from divot_datamodules.video_text import VideoTextData
from divot_lightning.training.recipe_files import find_recipe, recipes_dir
from divot_lightning.training.stages.llm_pretraining import LLMPretraining
from divot_lightning.training.training_cli import SettingsOnly

PAGE = (Path(__file__).parents[2] / "docs" / "your_own_videos.md").read_text(encoding="utf-8")
(RECIPE,) = re.findall(r"^```yaml title=llm.yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def settings(tmp_path):
    """Return the settings of the page's recipe, parsed as by `divot fit`."""
    (tmp_path / "llm.yaml").write_text(RECIPE)
    return SettingsOnly(["--config", str(tmp_path / "llm.yaml")], "divot fit", "start").config


def test_the_recipe_is_one_of_llm_pretraining(settings):
    assert settings.model.class_path.endswith(LLMPretraining.__name__)
    assert settings.data.class_path.endswith(VideoTextData.__name__)
    assert settings.model.init_args.head.class_path == "divot_heads.gmm.GMMHead"


def test_the_recipe_reads_clips_as_the_tokenizer_was_trained_on(settings):
    trained = yaml.safe_load(find_recipe("real/tokenizer_pretraining").read_text())["data"]["init_args"]["clip"]
    read = yaml.safe_load(RECIPE)["data"]["init_args"]["clip"]
    assert read == trained | {"sparse_frames": 5}
    assert f"--run {settings.model.init_args.previous} " in PAGE


def test_the_job_file_is_as_the_page_says():
    job = (recipes_dir() / "jobs" / "slurm.sh").read_text()
    for said in ("--gpus-per-node=8", "--time=24:00:00", "--signal=USR1@300", "${PYTHON:-python}"):
        assert said in job
