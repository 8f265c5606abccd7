"""The model class of lmms-eval; it needs lmms-eval."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from divot_lightning import ClipFeatures, DivotPipeline
from divot_lmms_eval.answering import Answering
from divot_lmms_eval.decoding import decoding_of, until
from divot_lmms_eval.media import MediaEncoder, PictureLists


class DivotModel(lmms):
    """A trained run of divot-lightning.

    Args:
        pretrained: Run folder, folder of components, or id of a Hugging Face repository.
        template: The form of the prompts that the model was trained on; None takes the run's.
        revision: Commit, tag or branch of the repository.
        dtype: float32, bfloat16 or float16; see `divot_lightning.load_run`.
        max_clips: Most clips of a video.
        picture_lists: What a list of several pictures is: frames of one "video", at the frame rate of the run, or
            "pictures" of their own.
        seed: Of the sampling of tasks with a temperature; each answer is sampled with it.
        batch_size: Requests at a time.
        device: cpu or cuda. Of several processes, as `accelerate launch` starts them, each takes its own GPU.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        template: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        max_clips: int = 20,
        picture_lists: PictureLists = "video",
        seed: int = 0,
        batch_size: int | str = 1,
        device: str | None = None,
    ) -> None:
        super().__init__()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            self.accelerator = Accelerator(cpu=device == "cpu")
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device)
        self.device = torch.device(device)
        options = {"template": template, "revision": revision, "dtype": dtype, "device": self.device}
        pipeline = DivotPipeline.from_pretrained(pretrained, **options)
        self.batch_size = int(batch_size)
        self.media = MediaEncoder(pipeline, int(max_clips), picture_lists)
        self.answering = Answering(pipeline, int(seed))

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer questions; see `lmms.generate_until`."""
        texts, bar = list[str](), self._bar(requests)
        # Neighbours with the same settings, which are those of their task.
        for settings, same in groupby(requests, key=lambda request: request.args[1]):
            for batch in _batches(list(same), self.batch_size):
                contexts = [request.args[0] for request in batch]
                features = [self._features(*request.args[2:6]) for request in batch]
                answers = self.answering.answer(contexts, features, decoding_of(settings))
                texts += [until(answer, settings.get("until")) for answer in answers]
                bar.update(len(batch))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args[:2], text)
        return texts

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Score answers: the mean negative log-likelihood of an answer's tokens, and whether it would be generated.

        The base class speaks of log-likelihoods, but lmms-eval's tasks take the answer with the lowest value, because
        its models return losses. The pairs are wrapped: lmms-eval 0.7.3 turns bare ones into texts, and then cannot
        read them.
        """
        scores, bar = list[GenerationResult](), self._bar(requests)
        for batch in _batches(requests, self.batch_size):
            contexts, targets, features = zip(*map(self._scored, batch), strict=True)
            scores += map(GenerationResult, self.answering.score(contexts, targets, features))
            bar.update(len(batch))
        return scores

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Answer questions of several rounds; the task writes each round's question from the answers before."""
        return [self._rounds(request) for request in tqdm(requests, desc="divot", disable=self.rank != 0)]

    def _rounds(self, request: Instance) -> list[str]:
        context, settings, to_media, to_round, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        media, since, answers, info = to_media(doc), 0, list[str](), None
        while True:
            features = self.media.encode((task, split, doc_id, since), media)
            [text] = self.answering.answer([context], [features], decoding_of(settings))
            answers.append(until(text, settings.get("until")))
            following, context, ends, given, info = to_round(
                doc, previous_output=answers, round_idx=len(answers), previous_round_info=info
            )
            if ends:
                return list(given)
            if following != media:
                media, since = following, len(answers)

    def _scored(self, request: Instance) -> tuple[str, str, ClipFeatures]:
        """Return question, answer and features of a request; lmms-eval gives no document where neither is asked of."""
        if len(request.args) == 2:
            context, target = request.args
            return context, target, self.media.encode(None, None)
        context, target, to_media, doc_id, task, split = request.args
        if callable(target):
            target = target(self.task_dict[task][split][doc_id])
        return context, str(target).strip(), self._features(to_media, doc_id, task, split)

    def _features(self, to_media: Callable[[Any], Any], doc_id: int, task: str, split: str) -> ClipFeatures:
        key = (task, split, doc_id)
        return self.media.encode(key, to_media(self.task_dict[task][split][doc_id]))

    def _bar(self, requests: Sequence[Instance]) -> "tqdm[None]":
        return tqdm(total=len(requests), desc="divot", unit="request", disable=self.rank != 0)


def _batches(requests: Sequence[Instance], size: int) -> Iterator[Sequence[Instance]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))
