"""Build the quickstart's score tables. No torch in here."""

from collections.abc import Mapping

from divot_datamodules.toy.world import ATTRIBUTES
from divot_lightning.evaluation.scores import Score, SeedSummary
from divot_lightning.experiments.quickstart.plan import MAIN_HEAD
from divot_lightning.experiments.quickstart.results import Results
from divot_lightning.experiments.report.content import Cell, Table
from divot_lightning.experiments.report.numbers import number, spread_of

TARGETS: dict[str, dict[str, float]] = {
    "reconstruction": {"colour": 0.95, "shape": 0.85, "direction": 0.95, "speed": 0.95},
    "questions": dict.fromkeys(ATTRIBUTES, 0.9),
    "captions": {"exact": 0.8},
}
"""Targets for held-out clips, by the oracle and by exact match."""
LABELS = {"start_error_pixels": "start error (pixels)", "psnr": "PSNR (dB)"}
GENERATION_COLUMNS = {
    "all": "all right", "colour": "colour", "shape": "shape", "direction": "direction", "speed": "speed",
    "invalid": "invalid", "spread": "spread", "frechet": "Frechet distance",
}  # fmt: skip


def _graded(score: Score, target: float | None) -> Cell:
    return Cell(number(score.value), None if target is None else score.value >= target)


def _over_seeds(summary: SeedSummary, target: float | None = None) -> Cell:
    detail = spread_of(summary.values) if len(summary.values) > 1 else ""
    return Cell(number(summary.mean), None if target is None else summary.mean >= target, detail)


def _target(value: float | None) -> str:
    return "" if value is None else f">= {value:g}"


def _beside_control(
    title: str, ours: Mapping[str, Score], control: Mapping[str, Score], targets: Mapping[str, float], note: str
) -> Table:
    rows: list[list[Cell | str]] = []
    for name, score in ours.items():
        target = targets.get(name)
        cells: list[Cell | str] = [
            LABELS.get(name, name),
            _graded(score, target),
            number(control[name].value),
            _target(target),
        ]
        rows.append(cells if targets else cells[:3])
    columns = ["", "trained", "random-init tokenizer", "target"]
    return Table(title, columns if targets else columns[:3], rows, note)


def _seeds(results: Results) -> str:
    count = len(results.settings.seeds)
    return "one training seed." if count == 1 else f"mean over {count} training seeds, below it smallest to largest."


def reconstruction_table(results: Results) -> Table:
    """Return oracle scores, start error and PSNR of reconstructions beside the control's."""
    ours, control = (results.scores(name, "reconstruction") for name in ("reconstruction", "control_reconstruction"))
    note = (
        f"Exact pixel oracle on {ours['all'].count} held-out clips; a clip that it cannot read (invalid) counts as "
        "wrong. Start error in pixels over valid clips, PSNR in decibels. Control: the same tokenizer, "
        "untrained and frozen; its de-tokenizer trains for as many steps as both stages of the trained one together."
    )
    return _beside_control("Reconstruction", ours, control, TARGETS["reconstruction"], note)


def question_table(results: Results) -> Table:
    """Return exact answers per attribute beside the control's."""
    ours, control = (results.scores(name, "questions") for name in ("instruction", "control_questions"))
    note = "Fraction of answers that equal the target word for word, decoded greedily, after instruction tuning."
    return _beside_control("Questions", ours, control, TARGETS["questions"], note)


def caption_table(results: Results) -> Table:
    """Return exact captions per head, with the control's."""
    names = ("exact", *ATTRIBUTES, "invalid")
    targets = TARGETS["captions"]
    rows: list[list[Cell | str]] = []
    for head in results.settings.heads:
        summaries = results.over_seeds(head, "captions")
        rows.append([head, *(_over_seeds(summaries[name], targets.get(name)) for name in names)])
    control = results.scores("control_captions", "captions")
    rows.append([f"{MAIN_HEAD} on a random-init tokenizer", *(number(control[name].value) for name in names)])
    rows.append(["target", *(_target(targets.get(name)) for name in names)])
    note = (
        "Captions after LLM pretraining with each head, decoded greedily; a caption that does not parse is invalid. "
        f"Heads: {_seeds(results)}"
    )
    return Table("Captions", ["", *names], rows, note)


def generation_table(results: Results) -> Table:
    """Return fidelity, spread and Frechet distance per head, beside those of real clips and real tokens."""
    names = list(GENERATION_COLUMNS)
    world = results.scores_of("world", "world", "generation")
    decoded = results.scores_of("reconstruction", "reconstruction", "generation")
    rows: list[list[Cell | str]] = [
        ["other real clips of the same captions", *(number(world[name].value) for name in names)],
        ["real tokens, decoded", *(number(decoded[name].value) for name in names)],
    ]
    for head in results.settings.heads:
        summaries = results.over_seeds(head, "generation")
        rows.append([head, *(_over_seeds(summaries[name]) for name in names)])
    adapted = results.scores("adapted", "generation")
    seed = results.settings.seeds[0]
    rows.append([f"{MAIN_HEAD}, seed {seed}, adapted de-tokenizer", *(number(adapted[name].value) for name in names)])
    note = (
        "One clip for the caption of each held-out clip. Fidelity: fraction in which the oracle reads the attributes "
        "of the caption; invalid clips are wrong. Spread: standard deviation of start positions within one caption, "
        "relative to real clips (1 is best; captions do not name the position), over valid clips. Frechet distance in "
        "a fixed space of hand-made features; lower is better, and few clips bias it upwards: the first row is the "
        f"best that can be reached. Heads: {_seeds(results)}"
    )
    return Table("Generation", ["", *GENERATION_COLUMNS.values()], rows, note)


def probe_table(results: Results) -> Table:
    """Return the accuracy of a linear probe on the tokens beside the control's."""
    ours, control = results.scores("world", "probe"), results.scores("control_probe", "probe")
    note = (
        "A ridge classifier on the tokens of the training clips, tested on held-out ones. An attribute that it "
        "reads from random-init tokens as well is no evidence that the tokenizer has learnt it."
    )
    return _beside_control("Linear probe of the tokens", ours, control, {}, note)
