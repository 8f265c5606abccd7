"""The position of training in the order plan: the batches that were used, not those that were fetched.

Loaders read ahead and Lightning's loops fetch ahead, by different amounts. So each batch carries the number of the
next step. A callback stores this number when the training step has used the batch, and checkpoints contain it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from divot_datamodules.order.order_plan import OrderPlan, Origin
from divot_datamodules.order.plan_edits import SkippedSteps, steps_from
from divot_lightning.errors import UserError


@dataclass(frozen=True)
class SourceFacts:
    """The facts about a source that a resumed run compares with its checkpoint.

    Attributes:
        name: As the recipe names it.
        shards: Number of shards or files.
        samples: Number of samples.
        fingerprint: See `divot_lightning.parts.sources.Source`.
        content: See `divot_lightning.parts.sources.Source`; compared only where both sides know it, since
            checkpoints of earlier versions do not contain it.
    """

    name: str
    shards: int
    samples: int
    fingerprint: str
    content: str = ""

    def as_saved(self) -> dict[str, Any]:
        """Return the facts as checkpoints contain them; there the number of shards is called "units"."""
        facts = {"name": self.name, "units": self.shards, "samples": self.samples}
        return {**facts, "fingerprint": self.fingerprint, "content": self.content}


class TrainPosition:
    """The next training step of the plan, which checkpoints save and load.

    Args:
        plan: The order.
        sources: The sources that the plan was made from.
        edits: Steps that the user skips.

    Attributes:
        plan: The order. After a state with other batch sizes was loaded, it counts from another origin.
        step: The next step.
        restored: Number of times that a state was loaded.
    """

    def __init__(self, plan: OrderPlan, sources: Sequence[SourceFacts], edits: Sequence[SkippedSteps] = ()) -> None:
        self.plan, self.sources, self.edits = plan, list(sources), list(edits)
        self.step = 0
        self.restored = 0
        if plan.exact and self.edits:
            raise UserError(
                f"steps {self.edits[0].steps} are to be skipped, but epoch is exact: each epoch covers the data once.\n"
                "Set epoch to endless, or remove the run's data/edits.jsonl."
            )

    def used(self, next_step: int) -> None:
        """Note that the training step before `next_step` has used its batch."""
        self.step = next_step

    def steps_from(self, first: int) -> Iterator[int]:
        """Yield the steps from `first` on, without the skipped ones."""
        return steps_from(first, self.edits)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain types."""
        origin = self.plan.origin
        return {
            "step": self.step,
            "samples": list(self.plan.samples_before(self.step)),
            "batch_sizes": list(self.plan.batch_sizes),
            "origin": {"step": origin.step, "samples": list(origin.samples)},
            "order": self.plan.identity(),
            "sources": [facts.as_saved() for facts in self.sources],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a checkpoint's position.

        Args:
            state: From `state_dict`. With other batch sizes, the order continues after the samples that were used.

        Raises:
            UserError: The data, or a setting that decides their order, changed.
        """
        changes = [*self._changed_sources(state["sources"]), *_differences(state["order"], self.plan.identity())]
        if changes:
            raise UserError(
                "the training data are not those of the checkpoint, so the run cannot continue in their order:\n"
                + "\n".join(changes[:2])
                + "\nGive the data and settings of the checkpoint, or start a new run."
            )
        same = state["batch_sizes"] == list(self.plan.batch_sizes)
        if not same and self.plan.exact:
            raise UserError(
                f"batch_size is {self.plan.batch_sizes[0]}, in the checkpoint it was {state['batch_sizes'][0]}; "
                "with exact epochs it cannot change during training.\n"
                f"Set data.batch_size to {state['batch_sizes'][0]}, or start a new run."
            )
        origin = state["origin"] if same else state
        self.plan = replace(self.plan, origin=Origin(origin["step"], tuple(origin["samples"])))
        self.step = state["step"]
        self.restored += 1

    def _changed_sources(self, before: list[dict[str, Any]]) -> Iterator[str]:
        if len(before) != len(self.sources):
            yield f"- {len(self.sources)} sources, in the checkpoint {len(before)}"
            return
        for then, now in zip(before, self.sources, strict=True):
            if then["fingerprint"] != now.fingerprint:
                yield _difference(then, now)
            elif then.get("content") and now.content and then["content"] != now.content:
                yield (
                    f"- {now.name}: other content than in the checkpoint, under the same names and keys and in the "
                    "same sizes"
                )


def _difference(then: dict[str, Any], now: SourceFacts) -> str:
    counts, before = (now.samples, now.shards), (then["samples"], then["units"])
    if counts == before:
        return f"- {now.name}: {now.samples} samples as in the checkpoint, but of other names, sizes or keys"
    return (
        f"- {now.name}: {now.samples} samples in {now.shards} shards; "
        f"in the checkpoint {then['name']}: {then['samples']} in {then['units']}"
    )


def _differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name, value in now.items():
        if name == "sources":
            for number, (before, after) in enumerate(zip(then["sources"], value, strict=False)):
                yield from (
                    f"- {key} of source {number} is {after[key]}, in the checkpoint {before[key]}"
                    for key in after
                    if key not in ("units", "samples") and after[key] != before[key]
                )
        elif value != then[name]:
            yield f"- {name} is {value}, in the checkpoint {then[name]}"
