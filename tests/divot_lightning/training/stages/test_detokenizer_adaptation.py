import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.checkpoint.run_components import find_component, record_components
from divot_lightning.distributed.rank_sync import StepState, check_ranks_in_sync
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.randomness import sample_generators
from divot_lightning.models.tokenizer.bottleneck import to_sphere
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.building import sequence_collator
from divot_lightning.models.video_llm.clip_generation import generate_prompted_clips
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sequences.collator import LaysOutSamples
from divot_lightning.parts.sequences.tokens import TokenKind
from divot_lightning.training.export import ComponentExport
from divot_lightning.training.stages.detokenizer_adaptation import DetokenizerAdaptation, nearest_candidates
from divot_optimizers.adamw import AdamWOptimizer

OPTIMIZER = AdamWOptimizer(lr=3e-3, warmup_steps=1)


def built(stage):
    stage.configure_model()
    return stage


def trainer(steps, **settings):
    options = {"max_steps": steps, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{**options, **settings})


@pytest.fixture
def llm_run(tmp_path, pretraining_run, make_config):
    """A run of the video LLM, which has dropout, on the tokenizer of the pretraining run."""
    torch.manual_seed(3)
    config = make_config()
    config.language_model_config["attention_dropout"] = 0.5
    run = tmp_path / "llm_run"
    run.mkdir()
    save_component(VideoLLM(config, GMMHead), run / "video_llm")
    record_components(run, {"tokenizer": pretraining_run / "tokenizer"})
    return run


@pytest.fixture
def make_stage(llm_run, pretraining_run):
    def make(**settings):
        return built(DetokenizerAdaptation(str(llm_run), str(pretraining_run), OPTIMIZER, **settings))

    return make


@pytest.fixture
def captioned(clips, make_config):
    """Batches of clips with captions to generate them from, laid out as the data workers do it."""
    samples = [[Text(text, False), Clips(1, "generate")] for text in ("a red circle", "blue square")]
    sequences = sequence_collator(make_config(), prompt=True).lay_out(samples)
    return [{**batch, "segments": samples, "sequences": sequences} for batch in clips]


def alone(batch):
    """The state of a job of one process."""
    return check_ranks_in_sync(StepState("test", 0, 0, -1, [], len(batch["video"]), len(batch["video"])))


def same(module, folder, kind):
    stored = load_component(folder, kind).state_dict()
    return {name: torch.equal(value, stored[name]) for name, value in module.state_dict().items()}


def test_only_the_detokenizer_learns(make_stage, llm_run, pretraining_run, captioned):
    stage = make_stage(candidates=2)
    assert all(same(stage.detokenizer, pretraining_run / "detokenizer", VideoDetokenizer).values())
    trainer(2).fit(stage, DataLoader(captioned, batch_size=None))
    assert all(same(stage.tokenizer, pretraining_run / "tokenizer", VideoTokenizer).values())
    assert all(same(stage.video_llm, llm_run / "video_llm", VideoLLM).values())
    assert not any(same(stage.detokenizer, pretraining_run / "detokenizer", VideoDetokenizer).values())
    for frozen in (stage.tokenizer, stage.video_llm):
        assert all(value.grad is None for value in frozen.parameters())


def test_what_is_frozen_is_in_evaluation_mode_during_training(make_stage, captioned):
    stage, modes = make_stage(), []
    stage.detokenizer.denoiser.register_forward_pre_hook(
        lambda *_: modes.append(
            (
                stage.detokenizer.training,
                any(part.training for part in stage.tokenizer.modules()),
                any(part.training for part in stage.video_llm.modules()),
            )
        )
    )
    trainer(len(captioned), num_sanity_val_steps=0).fit(stage, *[DataLoader(captioned, batch_size=None)] * 2)
    train, validate = (True, False, False), (False, False, False)
    assert modes == [train] * 3 + [validate] * 6
    assert not any(part.training for part in stage.train().video_llm.modules())


def test_one_candidate_is_the_heads_sample(make_stage, captioned):
    stage, batch = make_stage(temperature=0.7), captioned[0]
    torch.manual_seed(5)
    features = stage.condition(batch, None, "train", alone(batch))
    torch.manual_seed(5)
    expected = stage.video_llm.eval().generate_features(batch["segments"], temperature=0.7)
    assert torch.equal(features, expected)
    assert features.shape == (2, 3, 8)


def test_prompts_are_laid_out_by_the_data_as_the_model_itself_lays_them_out(make_stage, captioned):
    stage, samples = make_stage(), captioned[0]["segments"]
    collator = stage.sequence_collator()
    assert isinstance(stage, LaysOutSamples)
    for laid_out in (collator.lay_out(samples), collator.batch([collator.sequence(sample) for sample in samples])):
        expected = vars(stage.video_llm.sequences(samples, prompt=True))
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(expected[n])) for n, v in vars(laid_out).items())


def test_rows_that_fill_up_a_batch_do_not_change_the_others(make_stage, captioned):
    stage, prompts = make_stage(), captioned[0]["sequences"]
    generators = [[torch.Generator().manual_seed(seed) for seed in range(count)] for count in (2, 5)]
    alone, filled = (
        generate_prompted_clips(stage.video_llm.eval(), batch, [each])[0]
        for batch, each in zip((prompts, prompts.with_last_row(3)), generators, strict=True)
    )
    assert filled.shape == (5, 3, 8)
    torch.testing.assert_close(filled[:2], alone)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("on_sphere", [True, False])
@pytest.mark.parametrize("mode", ["query_bidirectional", "autoregressive"])
def test_candidates_have_the_bits_of_samples_drawn_one_by_one(make_config, captioned, mode, on_sphere, indexed):
    torch.manual_seed(3)
    config = make_config(generation_mode=mode, features_on_sphere=on_sphere)
    video_llm, samples = VideoLLM(config, GMMHead).eval(), captioned[0]["segments"]
    video_llm.feature_mean_C.uniform_(-1, 1)
    video_llm.feature_std_C.uniform_(0.5, 2)
    prompts = sequence_collator(config, prompt=True).lay_out(samples)

    def generators(candidate):
        return sample_generators(0, f"candidate {candidate}", [7, 8]) if indexed else None

    torch.manual_seed(5)
    expected = [one_by_one(video_llm, samples, generators(candidate)) for candidate in range(3)]
    calls = []
    video_llm.language_model.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(5)
    drawn = generate_prompted_clips(video_llm, prompts, [generators(candidate) for candidate in range(3)])
    assert torch.equal(drawn, torch.stack(expected))
    assert mode == "autoregressive" or len(calls) <= 1


def one_by_one(video_llm, samples, generators):
    """The features of one candidate: a forward pass of its own, and a call of the head for each sample."""
    if video_llm.config.generation_mode == "autoregressive":
        return video_llm.generate_features(samples, generator=generators)
    batch, num_queries = video_llm.sequences(samples, prompt=True), video_llm.num_queries
    hidden = video_llm.hidden_states(batch, video_llm.embed(batch, torch.zeros(len(samples), num_queries, 8)))
    lengths = [int((row != TokenKind.PAD).sum()) for row in batch.token_kind_BL]
    asked = torch.stack([row[end - num_queries : end] for row, end in zip(hidden, lengths, strict=True)])
    if generators is None:
        features = video_llm.head.sample(asked)
    else:
        drawn = [video_llm.head.sample(row[None], generator=one) for row, one in zip(asked, generators, strict=True)]
        features = torch.cat(drawn)
    mean, std = video_llm.feature_mean_C, video_llm.feature_std_C
    if video_llm.config.features_on_sphere:
        features = (to_sphere(features * std + mean) - mean) / std
    return features * std + mean


def test_samples_without_a_clip_to_generate_are_refused(make_stage, captioned):
    wrong = {**captioned[0], "segments": [[Clips(1, "read"), Text("a red circle", True)]] * 2}
    with pytest.raises(UserError, match="to generate, it must end with Clips"):
        make_stage().condition(wrong, None, "train", alone(wrong))


@pytest.mark.parametrize("per", ["clip", "token"])
def test_of_several_candidates_the_nearest_to_the_clip_is_taken(make_stage, captioned, per):
    stage, batch = make_stage(candidates=5, nearest_per=per), captioned[0]
    video = batch["video"] / 127.5 - 1
    torch.manual_seed(5)
    features = stage.condition(batch, None, "train", alone(batch))
    torch.manual_seed(5)
    drawn = [stage.video_llm.eval().generate_features(batch["segments"]) for _ in range(5)]
    with torch.no_grad():
        own = stage.tokenizer(video)
    assert torch.equal(features, slow_nearest(torch.stack(drawn), own, per))


def slow_nearest(candidates, target, per):
    chosen = torch.empty_like(target)
    for clip in range(target.shape[0]):
        error = ((candidates[:, clip] - target[clip]).double().numpy() ** 2).sum(axis=-1)
        for token in range(target.shape[1]):
            scores = error.sum(axis=1) if per == "clip" else error[:, token]
            chosen[clip, token] = candidates[int(np.argmin(scores)), clip, token]
    return chosen


@pytest.mark.parametrize("per", ["clip", "token"])
def test_nearest_candidates_equal_a_loop(per):
    candidates, target = torch.randn(6, 4, 5, 3), torch.randn(4, 5, 3)
    assert torch.equal(nearest_candidates(candidates, target, per), slow_nearest(candidates, target, per))


def test_choosing_per_token_is_never_farther_than_per_clip():
    candidates, target = torch.randn(6, 4, 5, 3), torch.randn(4, 5, 3)
    per_clip, per_token = (
        (nearest_candidates(candidates, target, per) - target).square().sum(dim=(1, 2)) for per in ("clip", "token")
    )
    assert (per_token < per_clip).all()


def test_a_candidate_that_is_the_target_is_chosen():
    target = torch.randn(4, 5, 3)
    candidates = torch.stack([torch.randn(4, 5, 3), target, torch.randn(4, 5, 3)])
    for per in ("clip", "token"):
        assert torch.equal(nearest_candidates(candidates, target, per), target)


def test_the_condition_is_what_the_head_samples_not_the_clips_own_tokens(make_stage, captioned):
    stage, seen = make_stage(condition_dropout=0.0), []
    stage.log = lambda *args, **kwargs: None
    stage.detokenizer.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    torch.manual_seed(5)
    stage.training_step(captioned[0], 0)
    torch.manual_seed(5)
    expected = stage.video_llm.eval().generate_features(captioned[0]["segments"])
    assert torch.equal(seen[0], expected)


def test_dropped_conditions_are_the_tokens_of_a_grey_clip(make_stage, captioned):
    stage, seen = make_stage(condition_dropout=1.0), []
    stage.log = lambda *args, **kwargs: None
    stage.detokenizer.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    stage.training_step(captioned[0], 0)
    with torch.no_grad():
        grey = stage.tokenizer(torch.zeros(1, 16, 3, 8, 8))
    torch.testing.assert_close(seen[0], grey.expand_as(seen[0]))


def test_the_run_exports_the_detokenizer_and_records_what_it_was_adapted_to(
    make_stage, llm_run, pretraining_run, captioned, tmp_path
):
    stage, run = make_stage(), tmp_path / "adapted"
    trainer(1, callbacks=[ComponentExport(run)]).fit(stage, DataLoader(captioned, batch_size=None))
    assert set(stage.exported_components()) == {"detokenizer"}
    assert find_component(run, "video_llm") == llm_run / "video_llm"
    assert find_component(run, "tokenizer") == pretraining_run / "tokenizer"
    assert all(same(stage.detokenizer, run / "detokenizer", VideoDetokenizer).values())


@pytest.mark.parametrize("count", [0, -2])
def test_no_candidates_are_refused(make_stage, count):
    with pytest.raises(UserError, match=f"candidates is {count}; it must be at least 1"):
        make_stage(candidates=count)


def test_a_detokenizer_for_other_tokens_is_refused_at_once(make_stage, pretraining_run, detokenizer_config):
    detokenizer_config.num_tokens = 5
    save_component(VideoDetokenizer(detokenizer_config), pretraining_run / "detokenizer")
    with pytest.raises(UserError, match=r"detokenizer\.num_tokens is 5, and the tokenizer gives 3 tokens of width 8"):
        make_stage()
