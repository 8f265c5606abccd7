"""Answer and score with features that were encoded before. No lmms-eval in here."""

from collections.abc import Mapping, Sequence
from typing import Any

from divot_lightning import ClipFeatures, DivotPipeline
from divot_lightning.inference.answer_scores import score_answers
from divot_lightning.inference.ask import answer, media_prompt


class Answering:
    """Answers and scores of batches of questions, each about clips of its own.

    Args:
        pipeline: The models.
        seed: Of the sampling; each answer is sampled with it.
    """

    def __init__(self, pipeline: DivotPipeline, seed: int) -> None:
        self.models, self.seed = pipeline.models, seed

    def answer(
        self, contexts: Sequence[str], features: Sequence[ClipFeatures], decoding: Mapping[str, Any]
    ) -> list[str]:
        """Return one text per question.

        Args:
            contexts: The questions, as the task writes them.
            features: Of the clips of each question.
            decoding: See `divot_lmms_eval.decoding.decoding_of`.
        """
        prompts = self._prompts(contexts, features)
        clips = [one.features_NQC for one in features]
        if not decoding["temperature"]:
            return answer(self.models.video_llm, prompts, clips, **decoding)
        texts = list[str]()
        for prompt, own in zip(prompts, clips, strict=True):
            generator = self.models.generator(self.seed)
            texts += answer(self.models.video_llm, [prompt], [own], **decoding, generator=generator)
        return texts

    def score(
        self, contexts: Sequence[str], answers: Sequence[str], features: Sequence[ClipFeatures]
    ) -> list[tuple[float, bool]]:
        """Return for each answer its loss, and whether greedy decoding would give it; see `score_answers`."""
        prompts = self._prompts(contexts, features)
        scored = score_answers(self.models.video_llm, prompts, answers, [one.features_NQC for one in features])
        return [(one.loss, one.is_greedy) for one in scored]

    def _prompts(self, contexts: Sequence[str], features: Sequence[ClipFeatures]) -> list[Any]:
        template, tasks = self.models.template, self.models.tasks
        pairs = zip(contexts, features, strict=True)
        return [media_prompt(context, one.kinds, template, tasks=tasks) for context, one in pairs]
