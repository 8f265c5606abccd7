"""Build the quickstart's report from its results. No torch in here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from divot_lightning.evaluation.scores import Score, SeedSummary
from divot_lightning.experiments.quickstart.illustrations import (
    answered_clips,
    generation_rows,
    loss_charts,
    reconstruction_rows,
)
from divot_lightning.experiments.quickstart.plan import MAIN_HEAD, Layout, QuickstartConfig, recipe_steps
from divot_lightning.experiments.quickstart.results import Results
from divot_lightning.experiments.quickstart.score_tables import (
    TARGETS,
    caption_table,
    generation_table,
    probe_table,
    question_table,
    reconstruction_table,
)
from divot_lightning.experiments.report.conditions import describe_machine
from divot_lightning.experiments.report.content import Headline, Report, Table
from divot_lightning.experiments.runner.progress import clock
from divot_lightning.experiments.runner.records import StepRecord

TABLES = (reconstruction_table, question_table, caption_table, generation_table, probe_table)


def build_report(folder: Path, settings: QuickstartConfig, records: Sequence[StepRecord], seconds: float) -> Report:
    """Build the report.

    Args:
        folder: The quickstart's folder, with all steps done.
        settings: Of the quickstart.
        records: Times and memory of its steps.
        seconds: Wall time of all its starts.
    """
    results = Results(Layout(folder), settings)
    return Report(
        title="Divot quickstart: the toy world" + ("" if settings.steps is None else ", smoke run"),
        introduction=_introduction(settings),
        headlines=_headlines(results, records, seconds),
        tables=[
            reconstruction_table(results),
            question_table(results),
            caption_table(results),
            generation_table(results),
            probe_table(results),
        ],
        reconstructions=reconstruction_rows(results),
        answers=answered_clips(results),
        generations=generation_rows(results),
        charts=loss_charts(results),
        steps=_steps(records),
        conditions=[*describe_machine(), *_totals(records, seconds)],
        notes=_notes(settings),
    )


def _introduction(settings: QuickstartConfig) -> str:
    text = (
        "Generated clips of one moving shape, as tars of h264 video, went through every stage of Divot: tokenizer "
        "pretraining, de-tokenizer refinement, LLM pretraining with each generation head, instruction tuning and "
        f"de-tokenizer adaptation. All scores are measured on {settings.held_out} held-out clips, whose combinations "
        "of colour, shape, direction and speed no stage has seen."
    )
    if settings.steps is None:
        return text
    return f"A smoke run of {settings.steps} steps per stage: everything runs, and the scores mean nothing. {text}"


def _headlines(results: Results, records: Sequence[StepRecord], seconds: float) -> list[Headline]:
    every: list[tuple[str, Mapping[str, Score | SeedSummary]]] = [
        ("reconstruction", results.scores("reconstruction", "reconstruction")),
        ("questions", results.scores("instruction", "questions")),
        ("captions", results.over_seeds(MAIN_HEAD, "captions")),
    ]
    lines = []
    for kind, scores in every:
        for name, target in TARGETS[kind].items():
            value = _value(scores[name])
            lines.append(Headline(f"{kind}: {name}", f"{value:.0%}", f">= {target:.0%}", value >= target))
    peak = max(record.together_mib for record in records) / 1024
    lines.append(Headline("wall time", clock(seconds), "<= 20 min", seconds <= 1200))
    return [*lines, Headline("peak memory", f"{peak:.1f} GiB", "<= 4 GiB", peak <= 4)] if peak else lines


def _value(score: Score | SeedSummary) -> float:
    return score.value if isinstance(score, Score) else score.mean


def _steps(records: Sequence[StepRecord]) -> Table:
    rows = [[r.name, clock(r.seconds), f"{r.peak_mib:.0f}", str(r.attempts)] for r in records]
    note = "Wall time; steps ran side by side, with one thread each. Shared memory pages are counted in each step."
    return Table("Steps", ["step", "time", "peak MiB", "starts"], rows, note)


def _totals(records: Sequence[StepRecord], seconds: float) -> list[tuple[str, str]]:
    together = max(record.together_mib for record in records)
    return [
        ("Wall time of all starts", clock(seconds)),
        ("Time of all steps added up", clock(sum(record.seconds for record in records))),
        ("Peak memory of all processes together", f"{together:.0f} MiB"),
    ]


def _notes(settings: QuickstartConfig) -> list[str]:
    stages = (
        "tokenizer_pretraining",
        "detokenizer_refinement",
        "llm_pretraining",
        "instruction_tuning",
        "detokenizer_adaptation",
    )
    steps = ", ".join(f"{name} {recipe_steps(name)}" for name in stages)
    notes = [
        "The oracle reads the attributes from pixels alone; a clip that it cannot read counts as wrong in all of them.",
        "Tokenizer, instruction tuning, adaptation and the controls were trained with one seed, LLM pretraining with "
        f"{len(settings.seeds)}: the ranges cover the variation of LLM pretraining only.",
        "In the toy world all tokens of a clip depend on one number, the position. A head that samples each token "
        "independently mixes positions, and the shape falls apart. On real videos the order of the heads may differ.",
        "The Frechet distance uses hand-made features of one object on plain ground; it cannot be compared with "
        "distances outside this page.",
    ]
    return [*notes, f"Training steps of the recipes: {steps}."] if settings.steps is None else notes
