"""Every shipped recipe says what it is for, parses against the live signatures, and trains."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from divot_datamodules.toy.shards import write_toy_data
from divot_datamodules.toy.story_shards import ToyStoryConfig
from divot_lightning.cli.main import main
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.recipe import load_recipe
from divot_lightning.parts.registries.kinds import HEADS
from divot_lightning.testing.toy_shards import make_toy_shards
from divot_lightning.training.recipe_files import recipe_names, recipes_dir
from divot_lightning.training.training_args import resolve_recipes
from divot_lightning.training.training_cli import TrainingCLI

HEADER = ("purpose", "command", "needs", "hardware", "expected", "paper")
STAGE_RECIPES = [name for name in recipe_names() if not name.startswith(("ablations/", "evaluation/", "experiments/"))]
EXPERIMENTS = [name for name in recipe_names() if name.startswith(("ablations/", "experiments/"))]
FORMER = {
    "tokenizer_pretraining": [],
    "captioning_pretraining": [],
    "detokenizer_refinement": ["tokenizer_pretraining"],
    "llm_pretraining": ["tokenizer_pretraining"],
    "open_captions": ["tokenizer_pretraining"],
    "instruction_tuning": ["llm_pretraining"],
    "detokenizer_adaptation": ["detokenizer_refinement", "llm_pretraining"],
    "story_tuning": ["llm_pretraining"],
    "story_detokenizer": ["detokenizer_refinement"],
}
"""The toy stages, and the stages whose run folders they take."""
HEAD_VARIANTS = load_recipe("ablations/heads").vary["head"]

TWO_STEPS = (
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--data.batch_size=2",
)
ONE_STEP = (*TWO_STEPS, "--trainer.max_steps=1", "--trainer.val_check_interval=1")
"""Where another test shows that a step follows a step."""


class ParsingOnly(TrainingCLI):
    """The command line up to the point where it would build the model."""

    def instantiate_classes(self) -> None:
        self.trainer = None


@pytest.fixture(autouse=True)
def _no_words_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["divot"])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory that all recipes of this file run in, with toy data where recipes look for them."""
    folder = tmp_path_factory.mktemp("workplace")
    make_toy_shards(folder / "data/toy")
    write_toy_data(folder / "data/toy_stories", ToyStoryConfig(train=4, validation=4, held_out=1))
    make_toy_shards(folder / "data/real_size", size=64)
    (folder / "data/real").symlink_to(folder / "data/real_size/train")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("name", STAGE_RECIPES)
def test_header_has_every_field_in_order(name: str) -> None:
    lines = (recipes_dir() / f"{name}.yaml").read_text().splitlines()
    header = [line for line in lines[: len(HEADER)] if line.startswith("# ")]
    assert [line[2:].split(":")[0] for line in header] == list(HEADER)
    assert all(line.split(":", 1)[1].strip() for line in header)
    assert f"divot fit --config {name}" in header[1]


@pytest.mark.parametrize("name", STAGE_RECIPES)
def test_recipe_parses(name: str) -> None:
    cli = ParsingOnly(["--config", str(recipes_dir() / f"{name}.yaml")], "divot fit", "start")
    assert cli.config.run == f"runs/{name}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_training_step_of_an_experiment_parses(name: str, tmp_path: Path) -> None:
    grid = make_grid(load_recipe(name), tmp_path)
    commands = {step.command for step in grid.all_steps() if step.run is not None}
    assert commands
    seen = set()
    for command in sorted(commands):
        words = list(command[command.index("fit") + 1 :])
        kind = tuple(word for word in words if word.startswith("--")), words[words.index("--config") + 1]
        if kind not in seen:
            ParsingOnly(resolve_recipes(words), "divot fit", "start")
        seen.add(kind)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_what_it_is_for(name: str) -> None:
    lines = (recipes_dir() / f"{name}.yaml").read_text().splitlines()
    fields = [line[2:].split(":")[0] for line in lines if line.startswith("# ") and not line.startswith("#  ")]
    assert fields == ["purpose", "command", "needs", "hardware", "paper"]
    assert f"divot ablate {name}" in lines[fields.index("command")] + lines[fields.index("command") + 1]


def test_every_ablation_has_a_version_at_the_paper_size() -> None:
    toy_only = {"heads_closed", "adaptation", "stories"}  # about things that only the toy world has
    names = {name.removeprefix("ablations/") for name in EXPERIMENTS if name.startswith("ablations/")}
    sizes = {name.removeprefix("paper/") for name in names if name.startswith("paper/")}
    assert {name for name in names if "/" not in name} - toy_only == sizes


def test_every_stage_has_its_toy_recipe() -> None:
    assert {name.removeprefix("toy/") for name in recipe_names() if name.startswith("toy/")} == set(FORMER)


@pytest.mark.parametrize("stage", FORMER)
def test_toy_recipe_trains_on_the_folders_of_the_former_ones(workplace: Path, stage: str) -> None:
    run = _trained(stage)
    assert json.loads((run / "finished.json").read_text())["steps"] == 2
    assert list(run.glob("*/model.safetensors"))


@pytest.mark.parametrize("variant", HEAD_VARIANTS)
def test_llm_recipe_trains_every_head_of_the_ablation(workplace: Path, variant: str) -> None:
    _trained("tokenizer_pretraining")
    run, options = Path("runs") / variant, HEAD_VARIANTS[variant]["llm"]
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["fit", "--config", "toy/llm_pretraining", *ONE_STEP, *words, "--run", str(run)]) == 0
    described = json.loads((run / "video_llm/config.json").read_text())
    assert options["model.head"] in described["config"]["head"]["class_path"].lower()


@pytest.mark.parametrize("name", ["ablations/heads", "ablations/paper/heads"])
def test_ablation_of_heads_has_every_built_in_head(name: str) -> None:
    compared = {options["llm"]["model.head"] for options in load_recipe(name).vary["head"].values()}
    built_in = {head.name for head in HEADS.installed() if head.class_path.startswith("divot_heads.")}
    assert compared == built_in | {"flow"}


def test_real_recipe_trains_at_64_pixels(workplace: Path) -> None:
    assert main(["fit", "--config", "real/tokenizer_pretraining", *ONE_STEP]) == 0


def test_a_stage_resumes_from_its_run_folder(workplace: Path) -> None:
    _trained("tokenizer_pretraining")
    stopped = Path("runs/stopped")
    assert main(["fit", "--config", "toy/llm_pretraining", *ONE_STEP, "--run", str(stopped)]) == 0
    assert main(["resume", str(stopped), "--trainer.max_steps", "2"]) == 0
    assert json.loads((stopped / "finished.json").read_text())["steps"] == 2


def _trained(stage: str) -> Path:
    """Return the run folder of a stage in the working directory; train it, and the runs that it needs, once."""
    run = Path("runs/toy") / stage
    if not run.exists():
        for former in FORMER[stage]:
            _trained(former)
        assert main(["fit", "--config", f"toy/{stage}", *TWO_STEPS]) == 0
    return run
