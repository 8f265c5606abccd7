"""Plan the steps of `divot quickstart`. No torch in here.

Training steps are commands that a user could type: `divot fit --config toy/<stage>` with other paths. If several steps
could start, the first in the plan does, so the steps of the comparison come first.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from divot_lightning.experiments.runner.steps import Step
from divot_lightning.training.recipe_files import find_recipe

DIVOT = (sys.executable, "-m", "divot_lightning")
MEASURE = (sys.executable, "-m", "divot_lightning.experiments.quickstart.measure")
ENCODE = (sys.executable, "-m", "divot_lightning.experiments.quickstart.encode")
FAST_STEPS = 4


@dataclass(frozen=True)
class QuickstartConfig:
    """The settings that decide the results of a quickstart.

    Attributes:
        train: Training clips.
        validation: Clips for the validation losses.
        held_out: Clips of combinations that training never sees; all scores are measured on them.
        heads: Generation heads to compare.
        seeds: Training seeds of each head.
        steps: Training steps of every stage; None for the recipes' own.
        batch_size: Samples per step; None for the recipes' own.
        few_processes: Whether measurements share processes, which is faster if each of them is small.
    """

    train: int = 4096
    validation: int = 256
    held_out: int = 256
    heads: tuple[str, ...] = ("mse", "diffusion", "gmm")
    seeds: tuple[int, ...] = (0, 1)
    steps: int | None = None
    batch_size: int | None = None
    few_processes: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


FULL = QuickstartConfig()
FAST = QuickstartConfig(
    train=32, validation=8, held_out=8, seeds=(0,), steps=FAST_STEPS, batch_size=4, few_processes=True
)
"""Every step in a tiny size: it shows that everything runs, and its scores mean nothing."""

HEAD_OPTIONS: dict[str, dict[str, Any]] = {
    "diffusion": {"model.head.width": 256, "model.head.draws_per_token": 1},
    "flow": {"model.head.draws_per_clip": 1},
}
"""Smaller sizes for heads whose defaults are too large for two CPU cores."""

MAIN_HEAD = "gmm"
"""The paper's head. Instruction tuning, de-tokenizer adaptation and the random-init control are trained with it."""


class Layout:
    """Paths inside the quickstart's folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.report = folder / "report.html"

    def run(self, name: str) -> Path:
        """Return the run folder of a training step."""
        return self.folder / name

    def features(self, tokenizer: str) -> Path:
        """Return the cached features of a tokenizer's run."""
        return self.folder / "features" / tokenizer

    def results(self, name: str) -> Path:
        """Return the folder of a measurement."""
        return self.folder / "results" / name


def llm_run(head: str, seed: int) -> str:
    """Return the name of the LLM pretraining of a head and a seed.

    >>> llm_run("gmm", 0)
    'llm_gmm_0'
    """
    return f"llm_{head}_{seed}"


def recipe_steps(name: str) -> int:
    """Return how many steps a toy recipe trains."""
    recipe = yaml.safe_load(find_recipe(f"toy/{name}").read_text(encoding="utf-8"))
    return int(recipe["trainer"]["max_steps"])


@dataclass(frozen=True)
class _Plan:
    layout: Layout
    settings: QuickstartConfig

    def fit(
        self, recipe: str, name: str, after: tuple[str, ...], options: dict[str, Any], steps: int | None = None
    ) -> Step:
        """Return a training step: a recipe with other paths, and with another number of steps if one is given."""
        run = self.layout.run(name)
        words = {"config": f"toy/{recipe}", "run": run, **options}
        if steps is not None:
            words["trainer.max_steps"] = steps
        if self.settings.steps is not None:
            words |= {"trainer.max_steps": min(self.settings.steps, steps if steps is not None else 10**9)}
            words |= {"trainer.val_check_interval": 2, "trainer.limit_val_batches": 1}
            words |= {"trainer.log_every_n_steps": 1}
        if self.settings.batch_size is not None:
            words["data.batch_size"] = self.settings.batch_size
        command = [*DIVOT, "fit", *(word for key, value in words.items() for word in (f"--{key}", str(value)))]
        return Step(name, tuple(command), after, run=run, resume=(*DIVOT, "resume", str(run)))

    def pixels(self) -> dict[str, Any]:
        """Return the options of a stage that trains on pixels."""
        return {"data.train": self.layout.data / "train", "data.validation": self.layout.data / "validation"}

    def cached(self, tokenizer: str) -> dict[str, Any]:
        """Return the options of a stage that trains on a tokenizer's cached features."""
        features = self.layout.features(tokenizer)
        return {
            "data.train": features / "train",
            "data.validation": features / "validation",
            "data.tokenizer": self.layout.run(tokenizer),
        }

    def encode(self, tokenizer: str) -> Step:
        """Return the step that caches the features of all splits."""
        output = self.layout.features(tokenizer)
        command = (*ENCODE, str(self.layout.run(tokenizer)), str(self.layout.data), str(output))
        return Step(f"features_{tokenizer}", command, (tokenizer,), outputs=(output,))

    def measure(self, name: str, kinds: str, after: tuple[str, ...], **options: Any) -> Step:
        """Return a measurement on the held-out clips."""
        output = self.layout.results(name)
        words = {"clips": self.layout.data / "held_out", "output": output, **options}
        pairs = (word for key, value in words.items() for word in (f"--{key}", str(value)))
        return Step(f"measure_{name}", (*MEASURE, *kinds.split(), *pairs), after, outputs=(output,))


def make_plan(folder: Path, settings: QuickstartConfig = FULL) -> list[Step]:
    """List the steps of the quickstart.

    Args:
        folder: Holds everything that the steps write.
        settings: Sizes, heads and seeds.

    Returns:
        The steps, each after those that it waits for.
    """
    plan = _Plan(Layout(folder), settings)
    measurements = _measurements(plan)
    if settings.few_processes:
        measurements = [_together("measure_first", measurements[::2]), _together("measure_rest", measurements[1::2])]
    return [_data(plan), *_tokenizers(plan), *_language_models(plan), *measurements]


def _together(name: str, steps: Sequence[Step]) -> Step:
    """Join measurements into one process, since importing torch takes longer than a small measurement."""
    words = [word for step in steps for word in ("then", *step.command[len(MEASURE) :])][1:]
    after = tuple(dict.fromkeys(name for step in steps for name in step.after))
    return Step(name, (*MEASURE, *words), after, outputs=tuple(path for step in steps for path in step.outputs))


def _data(plan: _Plan) -> Step:
    counts = {"train": plan.settings.train, "validation": plan.settings.validation}
    counts["held-out"] = plan.settings.held_out
    words = (word for key, value in counts.items() for word in (f"--{key}", str(value)))
    return Step("data", (*DIVOT, "data", "toy", str(plan.layout.data), *words), outputs=(plan.layout.data,))


def _tokenizers(plan: _Plan) -> list[Step]:
    tokenizer, control = plan.layout.run("tokenizer"), plan.layout.run("control_tokenizer")
    # The control's de-tokenizer trains for as many steps as that of the trained tokenizer in both stages together.
    together = recipe_steps("tokenizer_pretraining") + recipe_steps("detokenizer_refinement")
    refine = "detokenizer_refinement"
    return [
        plan.fit("tokenizer_pretraining", "tokenizer", ("data",), plan.pixels()),
        plan.fit("tokenizer_pretraining", "control_tokenizer", ("data",), plan.pixels(), steps=0),
        plan.encode("tokenizer"),
        plan.encode("control_tokenizer"),
        plan.fit(refine, "detokenizer", ("tokenizer",), {"model.previous": tokenizer, **plan.pixels()}),
        plan.fit(
            refine,
            "control_detokenizer",
            ("control_tokenizer",),
            {"model.previous": control, **plan.pixels()},
            steps=together,
        ),
    ]


def _language_models(plan: _Plan) -> list[Step]:
    def pretraining(name: str, tokenizer: str, head: str, seed: int) -> Step:
        options = {
            "model.head": head,
            **HEAD_OPTIONS.get(head, {}),
            "model.previous": plan.layout.run(tokenizer),
            "model.llm.text_tokenizer": plan.layout.data / "text_tokenizer",
            "seed_everything": seed,
            "data.seed": seed,
            **plan.cached(tokenizer),
        }
        return plan.fit("llm_pretraining", name, (f"features_{tokenizer}",), options)

    def tuning(name: str, previous: str, tokenizer: str) -> Step:
        options = {"model.previous": plan.layout.run(previous), **plan.cached(tokenizer)}
        return plan.fit("instruction_tuning", name, (previous,), options)

    heads = sorted(plan.settings.heads, key=lambda head: head != MAIN_HEAD)
    first, *others = [(head, seed) for seed in plan.settings.seeds for head in heads]
    main = llm_run(*first)
    adaptation = {"model.previous": plan.layout.run(main), "model.detokenizer": plan.layout.run("detokenizer")}
    return [
        pretraining(main, "tokenizer", *first),
        pretraining("control_llm", "control_tokenizer", MAIN_HEAD, 0),
        *(pretraining(llm_run(head, seed), "tokenizer", head, seed) for head, seed in others),
        tuning("instruction", main, "tokenizer"),
        tuning("control_instruction", "control_llm", "control_tokenizer"),
        plan.fit("detokenizer_adaptation", "adapted", (main, "detokenizer"), {**adaptation, **plan.pixels()}),
    ]


def _measurements(plan: _Plan) -> list[Step]:
    layout, features = plan.layout, plan.layout.features("tokenizer") / "held_out"
    control = layout.features("control_tokenizer") / "held_out"
    main = llm_run(MAIN_HEAD, plan.settings.seeds[0])
    steps = [
        plan.measure("reconstruction", "reconstruction", ("detokenizer",), run=layout.run("detokenizer")),
        plan.measure(
            "control_reconstruction",
            "reconstruction",
            ("control_detokenizer",),
            run=layout.run("control_detokenizer"),
        ),
        plan.measure(
            "world", "world probe", ("features_tokenizer",), features=features, train=features.parent / "train"
        ),
        plan.measure(
            "control_probe",
            "probe",
            ("features_control_tokenizer",),
            features=control,
            train=control.parent / "train",
        ),
    ]
    for head in plan.settings.heads:
        for seed in plan.settings.seeds:
            name = llm_run(head, seed)
            options = {"run": layout.run(name), "detokenizer": layout.run("detokenizer"), "features": features}
            steps.append(plan.measure(name, "captions generation", (name, "detokenizer"), seed=seed, **options))
    adapted = {"run": layout.run(main), "detokenizer": layout.run("adapted")}
    return [
        *steps,
        plan.measure("adapted", "generation", ("adapted",), **adapted),
        plan.measure("instruction", "questions", ("instruction",), run=layout.run("instruction"), features=features),
        plan.measure("control_captions", "captions", ("control_llm",), run=layout.run("control_llm"), features=control),
        plan.measure(
            "control_questions",
            "questions",
            ("control_instruction",),
            run=layout.run("control_instruction"),
            features=control,
        ),
    ]
