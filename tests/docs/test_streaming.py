"""What docs/training/streaming.md shows is taken as it stands."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.tasks.mixture import TaskMixture
from divot_datamodules.video_text import VideoTextData
from divot_lightning.training import training_cli

TEXT = (Path(__file__).parents[2] / "docs" / "training" / "streaming.md").read_text(encoding="utf-8")
RECIPES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
LINES = [json.loads(line) for line in re.findall(r"^\{.*\}$", TEXT, re.MULTILINE)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_parts_of_recipes_are_settings_of_the_data(recipe):
    assert training_cli  # whose parsing does not open URLs
    settings = recipe["data"]["init_args"] if "data" in recipe else {"tasks": {"caption": 1.0}} | recipe
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(VideoTextData, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": settings})).data
    assert len(data.sources["train"]) == (1 if isinstance(settings["train"], str) else len(settings["train"]))


@pytest.mark.parametrize(
    ("line", "task"), list(zip(LINES, ["caption", "question", "conversation", "story"], strict=True))
)
def test_lines_of_a_jsonl_hold_what_their_task_needs(line, task):
    clips = np.zeros((len(line.get("videos", [0])), 1, 3, 2, 2), np.uint8)
    segments = TaskMixture({task: 1.0}).segments_and_clips(Sample("k", line, video=clips), np.random.default_rng(0))[0]
    assert len(segments) >= 2
