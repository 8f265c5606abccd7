"""Recipes at full size fit the GPUs that their headers name, and the headers say what `divot preflight` says."""

import re
from pathlib import Path

import pytest

from divot_lightning.cli.main import main
from divot_lightning.training.recipe_files import recipe_names, recipes_dir

ROOM = 0.85
"""GiB that a step may take for each GB of a GPU; the rest is for CUDA, workspaces and gaps between allocations."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        from tests.recipes.modern_world import make_modern_world
        from tests.recipes.paper_world import make_paper_world

        make_paper_world(folder)
        make_modern_world(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith(("paper/", "modern/"))])
def test_recipe_fits_and_its_header_says_what_it_takes(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr("sys.argv", ["divot"])
    main(["preflight", "--config", name, "--data.num_workers", "0"])
    shown = capsys.readouterr()
    told = shown.out
    together = re.search(r"together +([\d.]+) MiB", told)
    assert together, told or shown.err
    header = (recipes_dir() / f"{name}.yaml").read_text()
    said = re.search(r"^# hardware: .*GPUs of (\d+) GB.*divot preflight: ([\d.]+) GiB", header, re.MULTILINE)
    assert said, "the header gives no number"
    assert float(said[2]) == pytest.approx(float(together[1]) / 1024, rel=0.03)
    assert float(together[1]) / 1024 < ROOM * float(said[1])
