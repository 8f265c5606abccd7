"""What the wheel holds, and that it works without the checkout."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from divot_lightning import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout with what is installed."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel, and nothing else, is installed into."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return folder


def _names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def _run(installed: Path, *words: str) -> str:
    """Run Python in a neutral folder; `installed` comes before everything else on the path."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=installed.parent, env=environment
    ).stdout


def test_top_level_names_are_ours_alone(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in _names(wheel)}
    assert tops == {
        "divot_lightning",
        "divot_heads",
        "divot_backbones",
        "divot_optimizers",
        "divot_datamodules",
        f"divot_lightning-{__version__}.dist-info",
    }


def test_every_source_file_is_in(wheel: Path) -> None:
    names = set(_names(wheel))
    roots = {
        "divot_lightning": ROOT,
        "divot_heads": ROOT / "plugins",
        "divot_backbones": ROOT / "plugins",
        "divot_optimizers": ROOT / "plugins",
        "divot_datamodules": ROOT / "datamodules",
    }
    for package, root in roots.items():
        sources = {path.relative_to(root).as_posix() for path in (root / package).rglob("*.py")}
        assert sources
        assert sources <= names


def test_the_page_of_the_demo_is_in(wheel: Path) -> None:
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "divot_lightning/demo/page").iterdir()}
    assert len(page) == 3
    assert page <= set(_names(wheel))


def test_every_recipe_is_in(wheel: Path) -> None:
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.*")}
    packed = {name.removeprefix("divot_lightning/") for name in _names(wheel) if name.endswith((".yaml", ".sh"))}
    assert packed == recipes


def test_licence_and_type_marker_are_in(wheel: Path) -> None:
    names = _names(wheel)
    assert "divot_lightning/py.typed" in names
    assert f"divot_lightning-{__version__}.dist-info/licenses/LICENSE" in names


def test_entry_points_are_the_command_and_the_built_in_parts(wheel: Path) -> None:
    parser = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        parser.read_string(archive.read(f"divot_lightning-{__version__}.dist-info/entry_points.txt").decode())
    assert dict(parser["console_scripts"]) == {"divot": "divot_lightning.cli.main:main"}
    assert dict(parser["divot_lightning.heads"]) == {
        "mse": "divot_heads.mse:MSEHead",
        "diffusion": "divot_heads.diffusion:DiffusionHead",
        "gmm": "divot_heads.gmm:GMMHead",
        "flow_token": "divot_heads.flow_token:FlowTokenHead",
        "flow_clip": "divot_heads.flow_clip:FlowClipHead",
        "energy": "divot_heads.energy:EnergyHead",
        "meanflow": "divot_heads.meanflow:MeanFlowHead",
        "autoregressive_flow": "divot_heads.autoregressive_flow:AutoregressiveFlowHead",
    }
    assert dict(parser["divot_lightning.optimizers"]) == {
        "adamw": "divot_optimizers.adamw:AdamWOptimizer",
        "muon": "divot_optimizers.muon:MuonOptimizer",
    }
    assert dict(parser["divot_lightning.vision_encoders"]) == {
        "clip": "divot_backbones.vision.clip:ClipVision",
        "transformers": "divot_backbones.vision.transformers_vision:TransformersVision",
        "trained": "divot_backbones.vision.trained:TrainedVision",
    }


def test_installed_outside_the_checkout_it_lists_its_heads(installed: Path) -> None:
    told = _run(installed, "-m", "divot_lightning", "heads")
    for head in ("diffusion", "gmm", "mse"):
        assert f"\n{head} " in f"\n{told}"
    assert str(installed / "divot_heads") in told


def test_installed_outside_the_checkout_it_finds_its_recipes(installed: Path) -> None:
    code = "from divot_lightning.training.recipe_files import *; print(recipes_dir(), *recipe_names(), sep='\\n')"
    folder, *names = _run(installed, "-c", code).split()
    assert Path(folder) == installed / "divot_lightning/recipes"
    assert "toy/tokenizer_pretraining" in names


def test_plugins_datamodules_and_recipes_are_folders_not_packages() -> None:
    for folder in ("plugins", "datamodules", "recipes"):
        assert not list((ROOT / folder).glob("*.py"))
    assert not list((ROOT / "recipes").rglob("*.py"))
