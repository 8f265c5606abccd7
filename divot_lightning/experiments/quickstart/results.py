"""Read the files of a quickstart for its report. No torch in here."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from divot_lightning.evaluation.scores import Score, SeedSummary, load_scores, summarise_seeds
from divot_lightning.experiments.quickstart.plan import Layout, QuickstartConfig, llm_run
from divot_lightning.experiments.report.content import Line, Pixels
from divot_lightning.experiments.report.numbers import read_curve


class Results:
    """Read the results that the steps wrote.

    Args:
        layout: Paths of the quickstart.
        settings: Heads and seeds.
    """

    def __init__(self, layout: Layout, settings: QuickstartConfig) -> None:
        self.layout, self.settings = layout, settings

    def scores_of(self, name: str, kind: str, prefix: str) -> dict[str, Score]:
        """Return those scores of a measurement whose names begin with `<prefix>/`, by the rest of the name."""
        every = load_scores(self.layout.results(name) / kind / "scores.json")
        return {score.name.partition("/")[2]: score for score in every if score.name.startswith(f"{prefix}/")}

    def scores(self, name: str, kind: str) -> dict[str, Score]:
        """Return the scores of a measurement that are named after its kind."""
        return self.scores_of(name, kind, kind)

    def over_seeds(self, head: str, kind: str) -> dict[str, SeedSummary]:
        """Return the scores of a head over all seeds; their protocols may differ in the seed only."""
        seeds = [self.scores(llm_run(head, seed), kind) for seed in self.settings.seeds]
        return {name: summarise_seeds([_without_seed(scores[name]) for scores in seeds]) for name in seeds[0]}

    def texts(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Return the texts that a measurement stored for each clip."""
        path = self.layout.results(name) / kind / "texts.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def clips(self, name: str, kind: str, what: str = "made") -> Pixels:
        """Return the clips of a measurement, uint8 (N, F, 3, H, W)."""
        with np.load(self.layout.results(name) / kind / "clips.npz") as arrays:
            return np.asarray(arrays[what])

    def curve(self, run: str, column: str, name: str) -> Line:
        """Return a column of a run's metrics as a curve, without points if it was not logged."""
        return read_curve(self.layout.run(run), column, name)


def _without_seed(score: Score) -> Score:
    """Drop what may differ between seeds: the seed, and the number of clips with a measurable spread."""
    protocol = {name: value for name, value in score.protocol.items() if name != "noise_seed"}
    return replace(score, protocol=protocol, count=0 if score.name.endswith("/spread") else score.count)
