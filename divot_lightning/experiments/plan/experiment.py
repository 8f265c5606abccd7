"""An experiment as its recipe describes it: steps, variants, seeds. No torch in here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from divot_lightning.experiments.plan.report_recipe import ReportRecipe
from divot_lightning.experiments.results.directions import Better

Kind = Literal["fit", "divot", "measure", "command"]
MatchedBy = Literal["steps", "samples", "tokens", "compute"]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class PipelineStep:
    """One step.

    Attributes:
        name: Its name in the recipe.
        kind: "fit" trains a stage, "divot" is any other divot command, "measure" measures a model, "command" is any
            program.
        what: The recipe; the words of the command, or a list of divot commands for one process; or a list of
            measurements, each with a `benchmark`, its settings, and a `name` if another one has the same benchmark.
        options: Its options; values may refer to folders. Those of "measure" are settings of all its measurements.
        folder: Its folder inside that of the experiment, in which `{axis}` and `{seed}` stand for a trial's; "" for a
            folder named after the trial.
        slots: Number of the jobs that run side by side whose place, GPUs and threads it takes.
        only: By axis, or "seed", the variants of the trials that have this step; empty for all.
    """

    name: str
    kind: Kind
    what: Any
    options: Options = field(default_factory=dict)
    folder: str = ""
    slots: int = 1
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def sources(self) -> tuple[str, ...]:
        """Return the names under which its scores are known: those of its measurements, or its own."""
        if self.kind != "measure":
            return (self.name,)
        return tuple(str(entry.get("name", entry["benchmark"])) for entry in self.what)


@dataclass(frozen=True)
class Experiment:
    """Steps and their variants.

    Attributes:
        title: Heading of the report.
        question: The question that the experiment answers, and what a reader must know about it.
        steps: Each after those it refers to.
        vary: Changed options by axis, variant and step. Several axes give all combinations of their variants.
        seeds: Seeds that each variant is run with.
        seed_options: By step, the options that take the seed.
        matched_by: The amount of training that all variants share: optimizer steps, samples, tokens of
            the language model's sequences, or compute in floating point operations.
        amount: That amount; None for the steps that the recipes state.
        matched_steps: The training steps that `amount` applies to.
        baseline: The combination that others are compared with, its variants joined by a dash; "" for the first.
        scores: Scores of the comparison, and which of their values are better: higher, lower, or near a number.
        reference: Published tables to show beside ours, each with title, columns, rows and a note.
        report: What else the report shows.
        content: The recipe as it was written, without `extends`.
    """

    title: str
    steps: tuple[PipelineStep, ...]
    question: str = ""
    vary: Mapping[str, Mapping[str, Mapping[str, Options]]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    seed_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    matched_by: MatchedBy = "steps"
    amount: float | None = None
    matched_steps: tuple[str, ...] = ()
    baseline: str = ""
    scores: Mapping[str, Better] = field(default_factory=dict)
    reference: tuple[Mapping[str, Any], ...] = ()
    report: ReportRecipe = field(default_factory=ReportRecipe)
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
