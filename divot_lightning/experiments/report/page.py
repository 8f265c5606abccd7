"""Build the report page of an experiment: tables, curves, samples side by side, time and memory. No torch in here."""

from collections.abc import Sequence

from divot_lightning.experiments.plan.experiment import Experiment
from divot_lightning.experiments.plan.grid import Grid
from divot_lightning.experiments.report.conditions import describe_machine
from divot_lightning.experiments.report.content import Headline, Report, Table
from divot_lightning.experiments.report.illustrations import answered_clips, charts, default_pictures, picture_rows
from divot_lightning.experiments.report.score_tables import headlines, measured, score_table
from divot_lightning.experiments.results.items import item_scores
from divot_lightning.experiments.results.tables import failure_table, reference_tables, result_table, seed_table
from divot_lightning.experiments.results.trials import TrialResult
from divot_lightning.experiments.runner.progress import clock
from divot_lightning.experiments.runner.records import StepRecord
from divot_lightning.training.run_folder import read_finished


def all_tables(recipe: Experiment, grid: Grid, results: Sequence[TrialResult]) -> list[Table]:
    """Return the tables in the order of the report."""
    tables = [score_table(table, measured(table, grid)) for table in recipe.report.tables]
    tables += [result_table(recipe, results)] if recipe.scores else []
    optional = (seed_table(recipe, results) if recipe.scores else None, failure_table(results))
    return [*tables, *(table for table in optional if table), *reference_tables(recipe)]


def build_report(
    recipe: Experiment,
    grid: Grid,
    results: Sequence[TrialResult],
    records: Sequence[StepRecord] = (),
    seconds: float = 0.0,
    conditions: Sequence[tuple[str, str]] = (),
) -> Report:
    """Build the report.

    Args:
        recipe: The experiment.
        grid: Its trials and their folders.
        results: Their results.
        records: Times and memory of the steps.
        seconds: Wall time of all starts.
        conditions: More facts, as (name, value).
    """
    shown = recipe.report
    return Report(
        title=recipe.title,
        introduction=recipe.question,
        headlines=_headlines(recipe, grid, records, seconds),
        tables=all_tables(recipe, grid, results),
        reconstructions=picture_rows(shown.reconstructions or default_pictures(grid, reconstructed=True), grid),
        answers=answered_clips(shown.answers, grid) if shown.answers else [],
        generations=picture_rows(shown.generations or default_pictures(grid, reconstructed=False), grid),
        charts=[chart for entry in shown.charts for chart in charts(entry, grid)],
        items=item_scores(recipe, grid, results),
        steps=_steps(records, grid) if records else None,
        conditions=[*describe_machine(), *conditions, *_totals(records, seconds)],
        notes=[*shown.notes, *_notes(recipe, results)],
    )


def _headlines(recipe: Experiment, grid: Grid, records: Sequence[StepRecord], seconds: float) -> list[Headline]:
    found = [line for table in recipe.report.tables for line in headlines(table, measured(table, grid))]
    minutes, gib = recipe.report.minutes, recipe.report.gib
    peak = max((record.together_mib for record in records), default=0.0) / 1024
    if minutes is not None and seconds:
        found.append(Headline("wall time", clock(seconds), f"<= {minutes:g} min", seconds <= 60 * minutes))
    if gib is not None and peak:
        found.append(Headline("peak memory", f"{peak:.1f} GiB", f"<= {gib:g} GiB", peak <= gib))
    return found


def _steps(records: Sequence[StepRecord], grid: Grid) -> Table:
    runs = {step.name: step.run for step in grid.all_steps() if step.run}
    trained = {name: str(read_finished(run).get("steps", "")) for name, run in runs.items()}
    rows = [[r.name, trained.get(r.name, ""), clock(r.seconds), f"{r.peak_mib:.0f}", str(r.attempts)] for r in records]
    note = "Wall time; steps may run side by side, with one thread each. Shared memory pages are counted in each step."
    return Table("Steps", ["step", "training steps", "time", "peak MiB", "starts"], rows, note)


def _totals(records: Sequence[StepRecord], seconds: float) -> list[tuple[str, str]]:
    if not records:
        return []
    return [
        ("Wall time of all starts", clock(seconds)),
        ("Time of all steps added up", clock(sum(record.seconds for record in records))),
        ("Peak memory of all processes together", f"{max(record.together_mib for record in records):.0f} MiB"),
    ]


def _notes(recipe: Experiment, results: Sequence[TrialResult]) -> list[str]:
    unfinished = [result.trial.name for result in results if not result.scores]
    notes = [
        "Every training step is an ordinary run: its folder holds config.yaml, and `divot fit --config "
        "STEP/config.yaml --run ANOTHER_FOLDER` trains it alone again.",
    ]
    if len(recipe.seeds) > 1:
        seeds = ", ".join(map(str, recipe.seeds))
        notes.append(f"Seeds: {seeds}. A range over few seeds is no confidence interval.")
    if unfinished:
        notes.append(f"Not done or failed: {', '.join(unfinished)}. The same command continues with what is missing.")
    if recipe.reference:
        notes.append("Published tables are shown for orientation only: their data, models and metrics are others.")
    return notes


def table_page(recipe: Experiment, conditions: Sequence[tuple[str, str]]) -> str:
    """Return the head of the Markdown results: title, question, machine and other conditions."""
    facts = "\n".join(f"- {name}: {value}" for name, value in [*describe_machine(), *conditions])
    return f"## {recipe.title}\n\n{recipe.question}\n\n{facts}\n"
