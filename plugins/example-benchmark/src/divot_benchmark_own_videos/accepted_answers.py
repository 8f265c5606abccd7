"""A metric of answers: the fraction that is one of the accepted ones, and how long answers are."""

from typing import Any, ClassVar, Literal

from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import ItemMetric


class AcceptedAnswers(ItemMetric):
    """Fraction of answers that equal an accepted one (`accepted`), and the mean number of words (`words`).

    Upper and lower case, spaces at the ends and a final full stop do not matter.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "answers"
    scores: ClassVar[tuple[str, ...]] = ("accepted", "words")

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Compare an answer with those that the item accepts."""
        accepted = {_plain(answer) for answer in item.references}
        return {"accepted": _plain(prediction.answer) in accepted, "words": len(prediction.answer.split())}


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").lower()
