"""Scores of given answers, compared with generating the same tokens one by one."""

import pytest
import torch

from divot_lightning import DivotPipeline
from divot_lightning.errors import UserError
from divot_lightning.inference.answer_scores import score_answers
from divot_lightning.inference.ask import answer, media_prompt
from divot_lightning.models.video_llm.cached_sequence import CachedSequence
from divot_lightning.models.video_llm.model import VideoLLM


@pytest.fixture(scope="module")
def video_llm(llm_run):
    return DivotPipeline.from_pretrained(llm_run).models.video_llm


def step_by_step(video_llm, prompt, answer, features):
    """Mean loss and greediness of an answer's tokens, each appended to the cached sequence of its prompt."""
    batch = video_llm.sequences([prompt], prompt=True)
    with torch.no_grad():
        sequence = CachedSequence(video_llm, batch, video_llm.normalise(features, batch.num_clips))
        ids = [*video_llm.text_tokenizer.encode(answer, add_special_tokens=False), video_llm.special.end]
        losses, greedy = [], True
        for token in ids:
            logits = video_llm.logits(sequence.last_hidden_BD)
            logits[:, video_llm.special.clip_markers] = -torch.inf
            losses.append(-logits.log_softmax(dim=-1)[0, token].item())
            greedy = greedy and logits.argmax().item() == token
            sequence.append(video_llm.causal_lm.get_input_embeddings()(torch.tensor([token])))
    return sum(losses) / len(losses), greedy


@pytest.mark.parametrize("template", ["pretraining", "instruction"])
def test_scores_are_those_of_generating_the_answer_whatever_shares_the_batch(video_llm, template):
    cases = [(("video",), "red"), (("video", "video"), "upper right"), (("image",), "cross"), ((), "a red circle")]
    prompts = [media_prompt("what shape is it ?", kinds, template) for kinds, _ in cases]
    features = [torch.randn(len(kinds), 3, 4) for kinds, _ in cases]
    scores = score_answers(video_llm, prompts, [text for _, text in cases], features)
    for prompt, (_, text), own, score in zip(prompts, cases, features, scores, strict=True):
        loss, greedy = step_by_step(video_llm, prompt, text, own)
        assert score.loss == pytest.approx(loss, rel=1e-4)
        assert score.is_greedy == greedy


def test_an_answer_is_greedy_exactly_if_it_is_generated(llm_run, monkeypatch):
    video_llm = DivotPipeline.from_pretrained(llm_run).models.video_llm
    prompt, generator = media_prompt("what ?", ["video"], "pretraining"), torch.Generator().manual_seed(0)
    real, found = VideoLLM.logits, 0
    unwritten = [token for token in video_llm.text_tokenizer.all_special_ids if token != video_llm.special.end]
    for boost in (1.0, 2.0, 4.0, 8.0):  # so that the untrained model ends some of its answers

        def likelier_end(self, hidden, boost=boost):
            logits = real(self, hidden)
            logits[:, self.special.end] += boost
            logits[:, unwritten] = -torch.inf  # they would be missing in the text
            return logits

        monkeypatch.setattr(VideoLLM, "logits", likelier_end)
        for _ in range(10):
            features = [3 * torch.randn(1, 3, 4, generator=generator)]
            said = answer(video_llm, [prompt], features, max_new_tokens=6)[0]
            num_tokens = len(video_llm.text_tokenizer.encode(said, add_special_tokens=False))
            if not said or num_tokens == 6:
                continue
            found += 1
            scores = score_answers(video_llm, [prompt] * 2, [said, "red" if said != "red" else "blue"], features * 2)
            assert [score.is_greedy for score in scores] == [True, False]
    assert found > 0


def test_earlier_answers_of_a_conversation_are_no_targets(video_llm):
    features = [torch.randn(1, 3, 4)]
    prompt = media_prompt("where ?", ["video"], "instruction", [("what colour ?", "red")])
    [score] = score_answers(video_llm, [prompt], ["left"], features)
    loss, _ = step_by_step(video_llm, prompt, "left", features[0])
    assert score.loss == pytest.approx(loss, rel=1e-4)


def test_an_answer_without_words_is_refused(video_llm):
    prompt = media_prompt("what ?", ["video"], "pretraining")
    with pytest.raises(UserError, match="an answer to be scored is empty"):
        score_answers(video_llm, [prompt], [" "], [torch.randn(1, 3, 4)])
