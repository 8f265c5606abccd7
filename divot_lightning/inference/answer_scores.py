"""Score given answers by how likely a video LLM finds them: a choice between answers without reading any text.

Shape letters: T targets of the batch, V vocabulary, D width of the LLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Segment, Text
from divot_lightning.parts.sequences.collator import lay_out
from divot_lightning.parts.sequences.layout import SequenceLayout


@dataclass(frozen=True)
class AnswerScore:
    """How likely an answer is.

    Attributes:
        loss: Mean negative log-likelihood of its tokens and of the end token, in nats; the likeliest answer has the
            lowest one.
        is_greedy: Whether greedy decoding would give exactly this answer.
    """

    loss: float
    is_greedy: bool


@torch.no_grad()
def score_answers(
    video_llm: VideoLLM,
    prompts: Sequence[list[Segment]],
    answers: Sequence[str],
    features: Sequence[Tensor],
) -> list[AnswerScore]:
    """Score one answer per prompt in one batch; call it in eval mode.

    Args:
        video_llm: The model.
        prompts: From `divot_lightning.inference.ask.media_prompt`.
        answers: The answers.
        features: For each prompt the features of its clips, (N, Q, C), unnormalised.

    Raises:
        UserError: An answer has no word.
    """
    if not all(answer.strip() for answer in answers):
        raise UserError("an answer to be scored is empty; give at least one word")
    samples = [[*_unlearned(prompt), Text(answer, learn=True)] for prompt, answer in zip(prompts, answers, strict=True)]
    layout = SequenceLayout(video_llm.num_queries, video_llm.config.generation_mode)  # a row each, of any length
    batch = lay_out(samples, video_llm.special, video_llm.text_tokenizer, layout)
    features_MQC = video_llm.normalise(torch.cat(list(features)), batch.num_clips)
    hidden_BLD = video_llm.hidden_states(batch, video_llm.embed(batch, features_MQC))
    target_T = batch.text_targets()
    logits_TV = video_llm.logits(hidden_BLD.flatten(0, 1)[(target_T - 1).to(hidden_BLD.device)])
    logits_TV[:, video_llm.special.clip_markers] = -torch.inf  # as `generate_text`, which opens no clip
    label_T = batch.labels_BL.flatten()[target_T].to(logits_TV.device)
    loss_T = functional.cross_entropy(logits_TV, label_T, reduction="none").cpu()
    greedy_T = (logits_TV.argmax(dim=1) == label_T).cpu()
    row_T = target_T // batch.labels_BL.shape[1]
    rows = [row_T == row for row in range(len(samples))]
    return [AnswerScore(float(loss_T[row].mean()), bool(greedy_T[row].all())) for row in rows]


def _unlearned(prompt: Sequence[Segment]) -> list[Segment]:
    """Return a prompt without targets of its own, which earlier answers are."""
    return [replace(segment, learn=False) for segment in prompt]
