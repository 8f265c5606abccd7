"""The code of docs/parts/vision_encoders.md runs as it stands."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

from divot_backbones.vision.families import FAMILIES
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.parts.registries.kinds import VISION_ENCODERS
from divot_lightning.parts.vision_encoders import VisionEncoder
from divot_lightning.testing import VisionEncoderConformance
from divot_lightning.training.recipe_files import find_recipe
from divot_lightning.training.training_cli import SettingsOnly

PAGE = (Path(__file__).parents[2] / "docs" / "parts" / "vision_encoders.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
TESTS = [name for name in dir(VisionEncoderConformance) if name.startswith("test_")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The page's files in a folder on the path, with metadata as pip writes it."""
    folder = tmp_path_factory.mktemp("site")
    for title, code in BLOCKS.items():
        (folder / title).write_text(code)
    info = folder / "divot_vision_colours-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: divot-vision-colours\nVersion: 1.0\n")
    points = BLOCKS["pyproject.toml"].replace('project.entry-points."', "").replace('"]', "]").replace('"', "")
    (info / "entry_points.txt").write_text(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    for name in ("divot_vision_colours", "test_colours"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", TESTS)
def test_the_encoder_of_the_page_passes_its_conformance_tests(installed, name):
    tests = importlib.import_module("test_colours").TestColours()
    getattr(tests, name)()


def fit_settings(*words):
    """The tokenizer's config as `divot fit` reads it."""
    words = ["--config", *words] if words[0].endswith(".yaml") else list(words)
    cli = SettingsOnly(["--config", str(find_recipe("toy/tokenizer_pretraining")), *words], "divot fit", "start")
    return cli.config.model.init_args.tokenizer.vision


@pytest.mark.usefixtures("installed")
def test_the_command_of_the_page_chooses_the_encoder():
    (line,) = re.findall(r"^divot fit --config toy/tokenizer_pretraining (.*)$", PAGE, re.MULTILINE)
    chosen = fit_settings(*line.split())
    assert (chosen.class_path, chosen.init_args.width) == ("divot_vision_colours.Colours", 32)


def test_the_recipe_of_the_page_chooses_the_encoder(installed):
    chosen = fit_settings(str(installed / "recipe.yaml"))
    assert (chosen.class_path, chosen.init_args.width) == ("divot_vision_colours.Colours", 32)
    vision = yaml.safe_load(BLOCKS["recipe.yaml"])["model"]["init_args"]["tokenizer"]["vision"]
    built = TokenizerConfig(vision=vision).vision()
    assert isinstance(built, VisionEncoder)
    assert built.patch_dim == 32


def test_the_page_names_every_built_in_encoder():
    ours = {part.name for part in VISION_ENCODERS.installed() if part.distribution == "divot-lightning"}
    assert {name for name in re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)} == ours
    assert "dinov3_vit" in FAMILIES
