import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.clip_generation import _generate_clip
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.video_llm.sampling import _read, sample_tokens
from divot_lightning.parts.segments import Clips, Text
from tests.divot_lightning.models.video_llm.tiny_video_llm import GENERATE, GENERATION_MODES, C, Q, features


def test_temperature_zero_takes_the_most_likely_token():
    logits_BV = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_tokens(logits_BV, temperature=0, top_p=1.0), logits_BV.argmax(dim=-1))


@given(st.integers(0, 50), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_only_tokens_within_top_p_are_drawn(seed, top_p, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(6, generator=generator) * 2
    probabilities = (logits_V / temperature).softmax(dim=-1).tolist()
    allowed, reached = set(), 0.0
    for token in sorted(range(6), key=lambda index: -probabilities[index]):
        if reached >= top_p - 1e-6 and allowed:
            break
        allowed.add(token)
        reached += probabilities[token]
    drawn = sample_tokens(logits_V.expand(64, -1), temperature, top_p - 1e-6, generator)
    assert set(drawn.tolist()) <= allowed


def test_samples_follow_the_softmax_at_the_temperature():
    logits_V = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    drawn = sample_tokens(logits_V.expand(20000, -1), 2.0, 1.0, torch.Generator().manual_seed(0))
    frequency = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(frequency, (logits_V / 2).softmax(dim=-1), atol=0.02, rtol=0)
    assert frequency[3] == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_are_never_chosen(temperature):
    logits_BV = torch.tensor([[9.0, 0.0]]).masked_fill(torch.tensor([True, False]), -torch.inf)
    assert sample_tokens(logits_BV, temperature, 1.0).tolist() == [1]


def test_samples_of_another_width_are_refused_with_both_shapes(make):
    video_llm = make()
    sample = video_llm.head.sample
    video_llm.head.sample = lambda *args, **kwargs: sample(*args, **kwargs)[..., 1:]
    expected = rf"of the shape \(1, 1, {Q}, {C - 1}\); expected is \(1, 1, {Q}, {C}\): samples, clips, tokens, width"
    with pytest.raises(UserError, match=expected):
        video_llm.generate_features([GENERATE])


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_features_are_generated_on_the_sphere_and_read_back_from_there(make, generation_mode, monkeypatch):
    video_llm, plain = (make(generation_mode=generation_mode, features_on_sphere=on) for on in (True, False))
    for model in (video_llm, plain):
        model.set_feature_statistics(torch.arange(5.0), torch.arange(1.0, 6.0))
    read, project = [], VideoLLM.project

    def watched(self, features_SC, dtype):
        read.append(features_SC)
        return project(self, features_SC, dtype)

    monkeypatch.setattr(VideoLLM, "project", watched)
    features_MQC = video_llm.generate_features([GENERATE])
    torch.testing.assert_close(features_MQC.norm(dim=-1), torch.full((1, Q), C**0.5))
    if generation_mode == "autoregressive":
        raw_NC = torch.cat(read[-Q + 1 :]) * video_llm.feature_std_C + video_llm.feature_mean_C
        torch.testing.assert_close(raw_NC, features_MQC[0, :-1])
    first = plain.generate_features([GENERATE])[:, 0]
    torch.testing.assert_close(torch.cosine_similarity(first, features_MQC[:, 0]), torch.ones(1))


CLIPS = Clips(4, "read")
QUESTIONS = [[CLIPS, Text(words, learn=False)] for words in ("a red", "a red circle moves left", "a blue square")]
BEHIND_WORDS = [[*first, CLIPS] for first in ([Text("a", learn=False)], [Text("a red circle", learn=False)])]


def passed_positions(monkeypatch, video_llm):
    """Return a list that gets the number of positions of each pass of the language model."""
    passed, model = [], video_llm.causal_lm.base_model
    forward = model.forward

    def watched(*args, **more):
        passed.append(more["inputs_embeds"].shape[:2].numel())
        return forward(*args, **more)

    monkeypatch.setattr(model, "forward", watched)
    return passed


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
@pytest.mark.parametrize("prompts", [QUESTIONS, BEHIND_WORDS])
def test_questions_about_the_same_clips_have_the_states_that_they_have_apart(make, generation_mode, prompts):
    video_llm = make(generation_mode=generation_mode)
    batch, given = video_llm.sequences(prompts, prompt=True), features(4)
    with torch.no_grad():
        together = _read(video_llm, batch, given, same_clips=True)
        apart = _read(video_llm, batch, given.repeat(len(prompts), 1, 1), same_clips=False)
        following = torch.randn(len(prompts), video_llm.causal_lm.config.hidden_size)
        torch.testing.assert_close(together.last_hidden_BD, apart.last_hidden_BD)
        torch.testing.assert_close(together.append(following), apart.append(following))


def test_clips_are_read_once_for_all_questions(make, monkeypatch):
    video_llm = make()
    passed = passed_positions(monkeypatch, video_llm)
    texts = [video_llm.generate_text([one], features(4), max_new_tokens=5)[0] for one in QUESTIONS]
    alone, rest = passed[0], len(passed)
    assert video_llm.generate_text(QUESTIONS, features(4), max_new_tokens=5, same_clips=True) == texts
    first, second = passed[rest : rest + 2]
    assert first >= 4 * Q, "the clips, once"
    assert second < 3 * alone / 2, "the words of all questions"


def test_the_last_token_is_not_read_again(make, monkeypatch):
    video_llm = make()
    passed = passed_positions(monkeypatch, video_llm)
    video_llm.generate_text([QUESTIONS[0]], features(4), max_new_tokens=1)
    assert len(passed) == 1, "the prompt alone"


def generate_one_by_one(video_llm, sample, count, generator):
    """Generate the clips of a sample as those of samples that end one clip later each, from their first token on."""
    clips = []
    for number in range(count):
        first = [*sample, Clips(number + 1, "generate")]
        batch = video_llm.sequences([first], prompt=True)
        given = torch.stack([*clips, torch.zeros(Q, C)])
        new = _generate_clip(video_llm, batch, video_llm.normalise(given, number + 1), 1.0, [generator])[0, 0]
        clips.append(new * video_llm.feature_std_C + video_llm.feature_mean_C)
    return torch.stack(clips)


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_clips_in_turn_are_those_of_samples_that_end_with_them(make, generation_mode):
    video_llm = make(generation_mode=generation_mode)
    video_llm.set_feature_statistics(torch.arange(5.0), torch.arange(1.0, 6.0))
    texts = [[Text("a blue square", learn=False)], [Text("a red circle moves left", learn=False)]]
    samples = [[*texts[0], Clips(3, "generate")], [*texts[1], Clips(2, "generate")]]

    def seeded(seed):
        return torch.Generator().manual_seed(seed)

    with torch.no_grad():
        apart = [generate_one_by_one(video_llm, texts[row], 3 - row, seeded(row)) for row in (0, 1)]
        together = video_llm.generate_features(samples, generator=[seeded(0), seeded(1)])
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_the_positions_that_are_computed_grow_linearly_with_the_clips(make, generation_mode, monkeypatch):
    video_llm = make(generation_mode=generation_mode)
    passed, totals = passed_positions(monkeypatch, video_llm), []
    for count in (2, 4, 6):
        passed.clear()
        video_llm.generate_features([[Text("a blue square", learn=False), Clips(count, "generate")]])
        totals.append(sum(passed))
    assert totals[2] - totals[1] == totals[1] - totals[0]
