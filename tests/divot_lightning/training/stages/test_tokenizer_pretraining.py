from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTModel

from divot_backbones.vision.clip import ClipVision
from divot_backbones.vision.trained import TrainedVision
from divot_backbones.vision.transformers_vision import TransformersVision
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.checkpoint.module_tensors import sort_tensors
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.representation_alignment import RepresentationAlignmentConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.bottleneck import BottleneckConfig, TokenBottleneck
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.training.export import ComponentExport
from divot_lightning.training.stages.tokenizer_pretraining import TokenizerPretraining
from divot_optimizers.adamw import AdamWOptimizer
from divot_optimizers.muon import MuonOptimizer
from tests.divot_backbones.vision.tiny_models import TINY

OPTIMIZER = AdamWOptimizer(lr=3e-3, warmup_steps=1)


def built(stage):
    stage.configure_model()
    return stage


def trainer(steps, **settings):
    options = {"max_steps": steps, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{**options, **settings})


@pytest.fixture
def stage(tokenizer_config, detokenizer_config):
    torch.manual_seed(0)
    return built(TokenizerPretraining(tokenizer_config, detokenizer_config, OPTIMIZER))


@pytest.fixture
def calls(monkeypatch):
    """The keyword arguments of every loss that is computed."""
    seen, loss = [], VideoDetokenizer.loss

    def watched(self, video, tokens, **settings):
        seen.append({"video": video, "tokens": tokens, **settings})
        return loss(self, video, tokens, **settings)

    monkeypatch.setattr(VideoDetokenizer, "loss", watched)
    return seen


def test_both_networks_learn_together(stage, clips):
    before = {name: value.clone() for name, value in stage.named_parameters()}
    run = trainer(3)
    run.fit(stage, DataLoader(clips, batch_size=None))
    assert run.callback_metrics["train/loss"].isfinite()
    still = [name for name, value in stage.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    assert {name.split(".")[0] for name in before} == {"tokenizer", "detokenizer"}


@pytest.mark.parametrize("model_type", sorted(TINY))
@pytest.mark.parametrize("token_source", ["perceiver", "spatiotemporal"])
def test_any_vision_model_of_transformers_learns_along(
    tokenizer_config, detokenizer_config, clips, model_type, token_source
):
    torch.manual_seed(0)
    vision = partial(TransformersVision, config={"model_type": model_type, **TINY[model_type]}, frozen=False)
    tokenizer = replace(tokenizer_config, vision=vision, num_frames=4, token_source=token_source)
    detokenizer = replace(detokenizer_config, num_tokens=None, token_dim=None)
    stage = built(TokenizerPretraining(tokenizer, detokenizer, OPTIMIZER))
    steps = 2 if model_type == "vjepa2" else 4
    assert stage.detokenizer.config.num_tokens == (3 if token_source == "perceiver" else steps * 2 * 2)
    before = {name: value.clone() for name, value in stage.named_parameters()}
    trainer(3).fit(stage, DataLoader(clips, batch_size=None))
    assert [name for name, value in stage.named_parameters() if torch.equal(value, before[name])] == []


def test_a_frozen_pretrained_vision_encoder_stays_and_is_named_as_a_source(
    tokenizer_config, detokenizer_config, clips, tmp_path
):
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY["vit"])).save_pretrained(tmp_path)
    vision = partial(TransformersVision, pretrained=str(tmp_path))
    stage = built(TokenizerPretraining(replace(tokenizer_config, vision=vision), detokenizer_config, OPTIMIZER))
    assert stage.frozen_sources() == {"tokenizer.vision": str(tmp_path)}
    before = {name: value.clone() for name, value in stage.named_parameters()}
    trainer(3).fit(stage, DataLoader(clips, batch_size=None))
    unmoved = {name for name, value in stage.named_parameters() if torch.equal(value, before[name])}
    assert unmoved == {name for name in before if name.startswith("tokenizer.vision.")}
    tensors = sort_tensors(stage)
    assert set(tensors.sourced["tokenizer.vision"]) == unmoved
    assert not unmoved & set(tensors.weights)


@pytest.mark.parametrize(
    "settings",
    [AdamWOptimizer(lr=1e-2, warmup_steps=1), MuonOptimizer(lr=1e-2, matrix_lr=1e-2, warmup_steps=1)],
    ids=["adamw", "muon"],
)
def test_training_lowers_the_loss_on_one_batch(tokenizer_config, detokenizer_config, clips, settings):
    torch.manual_seed(0)
    stage = built(TokenizerPretraining(tokenizer_config, detokenizer_config, settings))
    clips[0]["video"][0], clips[0]["video"][1] = 80, 175  # a dark clip and a bright one

    def loss():
        video = to_unit_range(clips[0]["video"])
        with torch.no_grad():
            return stage.detokenizer.loss(
                video, stage.tokenizer(video), terminal_timestep_prob=0.5, generator=torch.Generator().manual_seed(0)
            )

    before = loss()
    trainer(40).fit(stage, DataLoader(clips[:1] * 40, batch_size=None))
    assert loss() < 0.75 * before


def test_the_clips_own_tokens_are_the_condition_and_none_is_ever_dropped(stage, clips, calls):
    given = []
    stage.detokenizer.denoiser.register_forward_pre_hook(lambda module, args: given.append(args[2]))
    trainer(2).fit(stage, DataLoader(clips, batch_size=None))
    assert len(given) == len(calls) == 2
    for condition, call in zip(given, calls, strict=True):
        assert not call.get("condition_dropout")
        assert call["tokens"].requires_grad
        assert torch.equal(condition, call["tokens"])


def test_pixels_reach_the_models_between_minus_one_and_one(stage, clips, calls):
    trainer(1).fit(stage, DataLoader(clips, batch_size=None))
    expected = clips[0]["video"].double() / 255 * 2 - 1
    torch.testing.assert_close(calls[0]["video"].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("end", "expected"), [(None, [0.7] * 5), (0.2, [0.7, 0.7, 0.7, 0.2, 0.2])])
def test_terminal_timestep_prob_changes_halfway(tokenizer_config, detokenizer_config, clips, calls, end, expected):
    stage = built(TokenizerPretraining(tokenizer_config, detokenizer_config, OPTIMIZER, 0.7, end))
    trainer(5, max_epochs=-1).fit(stage, DataLoader(clips, batch_size=None))
    assert [call["terminal_timestep_prob"] for call in calls] == expected


def test_validation_uses_the_same_noise_every_time(stage, clips):
    rows = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        rows.append(trainer(1).validate(stage, DataLoader(clips, batch_size=None), verbose=False)[0])
    assert rows[0] == rows[1]
    assert set(rows[0]) == {"validation/loss", "validation/loss_at_pure_noise"}


def test_a_training_without_a_limit_of_steps_is_refused(stage, clips):
    with pytest.raises(UserError, match=r"the number of steps has no limit .*\nset trainer.max_steps"):
        trainer(-1, max_epochs=-1).fit(stage, DataLoader(clips, batch_size=None))


def test_a_test_measures_as_a_validation_does_under_its_own_name(stage, clips):
    data = DataLoader(clips, batch_size=None)
    validated = trainer(1).validate(stage, data, verbose=False)[0]
    tested = trainer(1).test(stage, data, verbose=False)[0]
    assert tested == {name.replace("validation", "test"): value for name, value in validated.items()}


def test_the_loss_at_pure_noise_of_an_untrained_network_is_the_energy_of_the_clips(stage, clips):
    # The last layer starts at zero and the target is minus the clip.
    run = trainer(1).validate(stage, DataLoader(clips, batch_size=None), verbose=False)[0]
    latents = torch.cat([stage.detokenizer.latents.encode(to_unit_range(clip["video"])) for clip in clips])
    assert run["validation/loss_at_pure_noise"] == pytest.approx(latents.square().mean().item(), rel=1e-4)


def test_the_run_exports_both_components(stage, clips, tmp_path):
    trainer(2, callbacks=[ComponentExport(tmp_path)]).fit(stage, DataLoader(clips, batch_size=None))
    for name, kind in (("tokenizer", VideoTokenizer), ("detokenizer", VideoDetokenizer)):
        loaded = load_component(tmp_path / name, kind).state_dict()
        for key, value in getattr(stage, name).state_dict().items():
            assert torch.equal(loaded[key], value), key
    assert stage.used_components() == {}


def test_a_detokenizer_for_other_tokens_is_refused(tokenizer_config, detokenizer_config):
    detokenizer_config.num_tokens = 7
    with pytest.raises(
        UserError, match=r"detokenizer\.num_tokens is 7, and the tokenizer gives 3 tokens of width 8"
    ) as caught:
        TokenizerPretraining(tokenizer_config, detokenizer_config, OPTIMIZER).build()
    assert len(str(caught.value).splitlines()) <= 5


def test_position_bound_tokens_are_counted_by_frames_and_grid(tokenizer_config, detokenizer_config):
    tokenizer_config.token_source = "spatiotemporal"
    detokenizer_config.num_tokens = None
    stage = built(TokenizerPretraining(tokenizer_config, detokenizer_config, OPTIMIZER))
    assert stage.detokenizer_config.num_tokens == 20


def test_no_recipe_has_to_state_the_sizes_of_tokens_and_components_store_them(
    tokenizer_config, detokenizer_config, tmp_path
):
    detokenizer_config.num_tokens = detokenizer_config.token_dim = None
    stage = built(TokenizerPretraining(tokenizer_config, detokenizer_config, OPTIMIZER))
    save_component(stage.detokenizer, tmp_path / "detokenizer")
    loaded = load_component(tmp_path / "detokenizer", VideoDetokenizer)
    assert (loaded.config.num_tokens, loaded.config.token_dim) == (3, 8)


def test_the_denoiser_gets_perturbed_tokens_in_training_and_whole_ones_in_validation(
    tokenizer_config, detokenizer_config, clips, calls
):
    torch.manual_seed(0)
    tokenizer = replace(tokenizer_config, bottleneck=BottleneckConfig(nested_dropout="uniform"))
    stage = built(TokenizerPretraining(tokenizer, detokenizer_config, OPTIMIZER))
    trainer(3, max_epochs=1).fit(stage, DataLoader(clips, batch_size=None), DataLoader(clips[:1], batch_size=None))
    kept = [(call["tokens"] != 0).all(dim=-1).sum(dim=1).tolist() for call in calls]
    training = [counts for call, counts in zip(calls, kept, strict=True) if call["tokens"].requires_grad]
    assert len(training) == 3
    assert min(min(counts) for counts in training) < 3
    assert all(counts == [3, 3] for call, counts in zip(calls, kept, strict=True) if not call["tokens"].requires_grad)


def test_the_kl_loss_is_weighted_logged_and_trains_the_variance(tokenizer_config, detokenizer_config, clips):
    torch.manual_seed(0)
    tokenizer = replace(tokenizer_config, bottleneck=BottleneckConfig(kl_weight=0.5))
    stage = built(TokenizerPretraining(tokenizer, detokenizer_config, OPTIMIZER))
    before = stage.tokenizer.bottleneck.log_variance.bias.clone()
    run = trainer(3)
    run.fit(stage, DataLoader(clips, batch_size=None))
    assert run.callback_metrics["train/kl_loss"] > 0
    assert stage.loss_counts(clips[0]) == {"loss": 2, "kl_loss": 2}
    assert not torch.equal(stage.tokenizer.bottleneck.log_variance.bias, before)


def test_without_options_training_is_the_same_bit_for_bit_as_without_a_bottleneck(
    tokenizer_config, detokenizer_config, clips, monkeypatch
):
    def trained():
        torch.manual_seed(0)
        stage = built(TokenizerPretraining(tokenizer_config, detokenizer_config, OPTIMIZER))
        torch.manual_seed(1)
        trainer(3).fit(stage, DataLoader(clips, batch_size=None))
        return stage.state_dict()

    ours = trained()
    monkeypatch.setattr(TokenBottleneck, "perturb", lambda self, tokens, generator: (tokens, None))
    monkeypatch.setattr(TokenBottleneck, "forward", lambda self, tokens: tokens)
    without = trained()
    assert ours.keys() == without.keys()
    assert all(torch.equal(ours[name], value) for name, value in without.items())


def test_repa_trains_its_projector_and_the_networks_but_is_not_exported(
    tokenizer_config, detokenizer_config, clips, tmp_path
):
    torch.manual_seed(0)
    vision = partial(ClipVision, image_size=8, patch_size=4, width=6, layers=1, heads=2)
    repa = RepresentationAlignmentConfig(vision=vision, block="blocks.0", width=12, projector_width=16)
    stage = built(TokenizerPretraining(tokenizer_config, detokenizer_config, OPTIMIZER, repa=repa))
    before = {name: value.clone() for name, value in stage.named_parameters()}
    run = trainer(3, callbacks=[ComponentExport(tmp_path)])
    run.fit(stage, DataLoader(clips, batch_size=None))
    assert -1 <= run.callback_metrics["train/repa_loss"] <= 1
    assert stage.loss_counts(clips[0]) == {"loss": 2, "repa_loss": 2}
    still = [name for name, value in stage.named_parameters() if torch.equal(value, before[name])]
    assert still == [name for name in before if name.startswith("repa.vision.")]
    assert {path.parent.name for path in tmp_path.glob("*/model.safetensors")} == {"tokenizer", "detokenizer"}
    plain = VideoDetokenizer(stage.detokenizer.config).state_dict()
    assert load_component(tmp_path / "detokenizer", VideoDetokenizer).state_dict().keys() == plain.keys()


def test_the_trained_encoder_of_another_run_serves_repa_and_is_named_as_a_source(
    tokenizer_config, detokenizer_config, clips, tokenizer_run
):
    torch.manual_seed(0)
    repa = RepresentationAlignmentConfig(
        vision=partial(TrainedVision, run=str(tokenizer_run)), block="blocks.0", width=12, projector_width=16
    )
    stage = built(TokenizerPretraining(tokenizer_config, detokenizer_config, OPTIMIZER, repa=repa))
    assert stage.frozen_sources() == {"repa.vision": str(tokenizer_run / "tokenizer")}
    trainer(1).fit(stage, DataLoader(clips, batch_size=None))
    given = load_component(tokenizer_run / "tokenizer", VideoTokenizer).vision.state_dict()
    assert all(torch.equal(stage.repa.vision.model.state_dict()[name], value) for name, value in given.items())
