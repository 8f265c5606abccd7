import json
import shutil
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from divot_backbones.denoisers.diffusers_denoiser import UNet3D
from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.latents.block_dct import BlockDCTLatents
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_backbones.objectives.ddim import DDIMSampler, Epsilon, VPrediction, alphas_cumprod, schedule_betas
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.config import ConditionResamplerConfig, DetokenizerConfig
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.randomness import sample_generators

FRAMES, SIZE, TOKENS, DIM = 4, 8, 3, 5
UNET = partial(
    UNet3D,
    config={
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "block_out_channels": [4, 8],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "attention_head_dim": 2,
    },
)
TRAILING = partial(VPrediction, snr_shift=2.0, eta=0.0, spacing="trailing")
RESAMPLER = ConditionResamplerConfig(num_queries=2, dim=8, layers=1, heads=2, head_dim=4, output_dim=6)


def schedule(shift=2.0):
    betas = schedule_betas(1000, 0.00085, 0.012, "scaled_linear")
    return alphas_cumprod(betas, zero_terminal_snr=True, shift=shift)


def make_config(**changes):
    settings = {
        "latents": partial(BlockDCTLatents, block_size=4, luma_frequencies=4, chroma_frequencies=1),
        "denoiser": partial(VideoDiT, width=12, layers=1, heads=2),
        "objective": TRAILING,
        "sampling": SamplingConfig(steps=4, guidance=1.0, guidance_rescale=0.0),
        "num_frames": FRAMES,
        "size": SIZE,
        "num_tokens": TOKENS,
        "token_dim": DIM,
    }
    return DetokenizerConfig(**{**settings, **changes})


def make(**changes):
    torch.manual_seed(0)
    detokenizer = VideoDetokenizer(make_config(**changes))
    for value in detokenizer.parameters():
        value.data += 0.2 * torch.randn_like(value)  # so that nothing stays zero and the condition matters
    return detokenizer


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def video():
    return torch.rand(6, FRAMES, 3, SIZE, SIZE, generator=seeded(1)) * 2 - 1


@pytest.fixture
def tokens():
    return torch.randn(6, TOKENS, DIM, generator=seeded(2))


@pytest.fixture
def null():
    return torch.full((TOKENS, DIM), 0.5)


class Recorder(nn.Module):
    """Replaces the denoiser and records its inputs."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(self, state, times, condition):
        self.calls.append((state.clone(), times.clone(), condition.clone()))
        return self.answer(state, times, condition)


def slow_loss(detokenizer, video, tokens, terminal_timestep_prob, dropout, null, generator):
    """Return the loss, computed clip by clip with the formulas of the schedule.

    Random numbers are drawn in the order in which `loss` draws them.
    """
    batch = len(video)
    tokens = tokens.clone()
    if dropout > 0:
        uniform = torch.rand(batch, generator=generator)
        for clip in range(batch):
            if uniform[clip] < dropout:
                tokens[clip] = null
    clean = detokenizer.latents.encode(video)
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randint(0, 1000, (batch,), generator=generator)
    moved = torch.rand(batch, generator=generator) < terminal_timestep_prob
    alphas = schedule()
    errors = []
    for clip in range(batch):
        time = 999 if moved[clip] else int(times[clip])
        signal, spread = float(alphas[time]) ** 0.5, float(1 - alphas[time]) ** 0.5
        noisy = signal * clean[clip] + spread * noise[clip]
        velocity = signal * noise[clip] - spread * clean[clip]
        given = detokenizer.denoiser(noisy[None], torch.tensor([time]), tokens[clip][None])[0]
        errors.append((given - velocity).square().mean())
    return torch.stack(errors).mean()


@pytest.mark.parametrize(("terminal_timestep_prob", "dropout"), [(0.0, 0.0), (0.5, 0.0), (0.3, 0.5), (1.0, 1.0)])
def test_the_loss_equals_a_slow_computation(video, tokens, null, terminal_timestep_prob, dropout):
    detokenizer = make()
    loss = detokenizer.loss(
        video,
        tokens,
        terminal_timestep_prob=terminal_timestep_prob,
        condition_dropout=dropout,
        null_tokens_QC=null,
        generator=seeded(),
    )
    expected = slow_loss(detokenizer, video, tokens, terminal_timestep_prob, dropout, null, seeded())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_tokens_and_every_parameter(video, tokens):
    detokenizer = make(condition_resampler=RESAMPLER)
    tokens.requires_grad_()
    detokenizer.loss(video, tokens, generator=seeded()).backward()
    assert tokens.grad.abs().sum(dim=(1, 2)).gt(0).all()
    assert [name for name, value in detokenizer.named_parameters() if value.grad is None] == []


def test_at_the_terminal_step_the_network_gets_noise_and_nothing_of_the_clip(video, tokens):
    detokenizer = make()
    recorder = detokenizer.denoiser = Recorder(lambda state, times, condition: torch.zeros_like(state))
    losses = [
        detokenizer.loss(clip, tokens, terminal_timestep_prob=1.0, generator=seeded())
        for clip in (video, video.flip(0) * 0.5)
    ]
    (state, times, _), (other_state, _, _) = recorder.calls
    assert times.tolist() == [999] * 6
    assert torch.equal(state, other_state)
    # The target is minus the clip, so the loss of predicting nothing is the clip's energy.
    torch.testing.assert_close(losses[0], detokenizer.latents.encode(video).square().mean())
    torch.testing.assert_close(losses[1], detokenizer.latents.encode(video * 0.5).square().mean())


def test_before_the_terminal_step_the_network_gets_the_clip(video, tokens):
    detokenizer = make()
    recorder = detokenizer.denoiser = Recorder(lambda state, times, condition: torch.zeros_like(state))
    for clip in (video, -video):
        detokenizer.loss(clip, tokens, generator=seeded())
    assert recorder.calls[0][1].max() < 999
    assert not torch.allclose(recorder.calls[0][0], recorder.calls[1][0], atol=1e-2)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_noise_levels_and_targets_are_float32_under_any_autocast(video, tokens, monkeypatch, autocast, prediction):
    times = torch.tensor([0, 1, 2, 19, 500, 999])
    objective = VPrediction if prediction == "v_prediction" else partial(Epsilon, zero_terminal_snr=True)
    detokenizer, seen = make(objective=objective), {}
    monkeypatch.setattr(detokenizer.objective, "sample_times", lambda *args, **settings: times)
    monkeypatch.setattr(
        "torch.nn.functional.mse_loss", lambda given, target: seen.update(target=target) or given.sum() * 0
    )
    detokenizer.denoiser.register_forward_pre_hook(lambda module, inputs: seen.update(noisy=inputs[0]))
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        detokenizer.loss(video, tokens, generator=seeded())
    clean = detokenizer.latents.encode(video.double())
    noise = torch.randn(clean.shape, generator=seeded()).double()
    signal, spread = (alpha.sqrt()[times].view(-1, 1, 1, 1, 1) for alpha in (schedule(1.0), 1 - schedule(1.0)))
    target = noise if prediction == "epsilon" else signal * noise - spread * clean
    for name, expected in (("noisy", signal * clean + spread * noise), ("target", target)):
        assert seen[name].dtype == torch.float32
        torch.testing.assert_close(seen[name].double(), expected, rtol=1e-5, atol=2e-6)
    levels = ((seen["noisy"].double() - signal * clean) / noise).flatten(1).median(dim=1).values
    assert levels.tolist() == pytest.approx(spread.flatten().tolist(), rel=1e-3)
    assert (levels > 0.02).all()


def test_the_sampler_keeps_its_state_in_float32_under_autocast(tokens, monkeypatch):
    detokenizer, states = make(), []
    step = DDIMSampler.step

    def keep(self, index, prediction, state, draw):
        states.append((prediction.dtype, state.dtype))
        return step(self, index, prediction, state, draw)

    monkeypatch.setattr(DDIMSampler, "step", keep)
    with torch.autocast("cpu", torch.bfloat16):
        detokenizer.decode(tokens.bfloat16(), generator=seeded())
    assert states == [(torch.float32, torch.float32)] * 4


@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
def test_dropout_replaces_whole_clips_tokens_and_leaves_the_rest(null, dropout):
    detokenizer = make()
    recorder = detokenizer.denoiser = Recorder(lambda state, times, condition: torch.zeros_like(state))
    tokens = torch.randn(300, TOKENS, DIM)
    video = torch.zeros(300, FRAMES, 3, SIZE, SIZE)
    detokenizer.loss(video, tokens, condition_dropout=dropout, null_tokens_QC=null, generator=seeded())
    seen = recorder.calls[0][2]
    dropped = (seen == null).all(dim=(1, 2))
    kept = (seen == tokens).all(dim=(1, 2))
    assert (dropped ^ kept).all()
    # Five standard deviations of a binomial fraction.
    assert abs(dropped.float().mean().item() - dropout) <= 5 * (dropout * (1 - dropout) / 300) ** 0.5


def test_the_loss_is_float32_and_the_generator_decides_it(video, tokens):
    detokenizer = make()
    with torch.autocast("cpu", torch.bfloat16):
        loss = detokenizer.loss(video, tokens, generator=seeded())
    assert loss.dtype == torch.float32
    first, second, other = (detokenizer.loss(video, tokens, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def oracle(detokenizer, clean):
    """Return a denoiser that knows the clean latents and predicts the exact velocity of any noisy state."""
    alphas = schedule()

    def answer(state, times, condition):
        alpha = alphas[times].to(state)[:, None, None, None, None]
        noise = (state - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    return answer


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_exact_denoiser_restores_the_clip(video, tokens, spacing, steps, eta):
    detokenizer = make(objective=partial(VPrediction, snr_shift=2.0, eta=eta, spacing=spacing))
    clean = detokenizer.latents.encode(video)
    detokenizer.denoiser = Recorder(oracle(detokenizer, clean))
    sampling = SamplingConfig(steps=steps, guidance=1.0)
    decoded = detokenizer.decode(tokens, sampling=sampling, generator=seeded())
    assert decoded.shape == video.shape
    torch.testing.assert_close(decoded, detokenizer.latents.decode(clean, FRAMES), atol=1e-3, rtol=1e-3)
    assert len(detokenizer.denoiser.calls) == steps


def test_the_first_trailing_step_is_at_pure_noise(tokens):
    detokenizer = make()
    recorder = detokenizer.denoiser = Recorder(lambda state, times, condition: torch.zeros_like(state))
    detokenizer.decode(tokens, generator=seeded())
    assert [call[1].unique().tolist() for call in recorder.calls] == [[999], [749], [499], [249]]
    assert recorder.calls[0][0].std().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_generator_decides_the_clips(tokens, eta):
    sampling = SamplingConfig(steps=3, guidance=1.0)
    detokenizer = make(objective=partial(VPrediction, eta=eta), sampling=sampling)
    first, second, other = (detokenizer.decode(tokens, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-2)


def test_decoding_depends_on_the_tokens_and_keeps_no_graph(tokens):
    detokenizer = make()
    decoded = detokenizer.decode(tokens.requires_grad_(), generator=seeded())
    assert not decoded.requires_grad
    assert not torch.allclose(decoded, detokenizer.decode(-tokens, generator=seeded()), atol=1e-3)


def test_guidance_one_is_no_guidance(tokens, null):
    detokenizer = make()
    recorder = detokenizer.denoiser = Recorder(detokenizer.denoiser)
    plain = detokenizer.decode(tokens, generator=seeded())
    with_null = detokenizer.decode(tokens, null_tokens_QC=null, generator=seeded())
    assert torch.equal(plain, with_null)
    assert len(recorder.calls) == 2 * 4


def test_guidance_goes_beyond_the_condition_away_from_the_null_tokens(tokens, null):
    detokenizer = make()
    detokenizer.denoiser = Recorder(
        lambda state, times, condition: condition.mean(dim=(1, 2))[:, None, None, None, None].expand_as(state)
    )
    sampling = SamplingConfig(steps=1, guidance=3.0, guidance_rescale=0.0)
    decoded = detokenizer.decode(tokens, null_tokens_QC=null, sampling=sampling, generator=seeded())
    # At pure noise the clean sample is minus the velocity.
    velocity = null.mean() + 3.0 * (tokens.mean(dim=(1, 2)) - null.mean())
    grid = SIZE // 4
    latents = -velocity[:, None, None, None, None].expand(6, FRAMES, 6, grid, grid)
    torch.testing.assert_close(decoded, detokenizer.latents.decode(latents, FRAMES), atol=1e-5, rtol=1e-4)
    # Both in one batch.
    (seen,) = (call[2] for call in detokenizer.denoiser.calls)
    assert torch.equal(seen[:6], tokens)
    assert torch.equal(seen[6:], null.expand_as(tokens))


def test_guidance_without_null_tokens_is_refused(tokens):
    with pytest.raises(UserError, match=r"guidance 7\.5 needs the tokens of an all-zero clip"):
        make().decode(tokens, sampling=SamplingConfig(steps=1), generator=seeded())


def test_given_sampling_replaces_the_configs(tokens):
    detokenizer = make()
    recorder = detokenizer.denoiser = Recorder(lambda state, times, condition: state)
    detokenizer.decode(tokens, sampling=replace(detokenizer.config.sampling, steps=2), generator=seeded())
    assert len(recorder.calls) == 2


@pytest.mark.parametrize("shape", [(2, TOKENS + 1, DIM), (2, TOKENS, DIM - 1)])
def test_tokens_of_another_size_are_refused_in_both_directions(shape):
    detokenizer = make(condition_resampler=RESAMPLER)
    video, tokens = torch.zeros(2, FRAMES, 3, SIZE, SIZE), torch.zeros(shape)
    for call in (lambda: detokenizer.loss(video, tokens), lambda: detokenizer.decode(tokens)):
        with pytest.raises(UserError) as caught:
            call()
        assert f"{shape[1:]} and needs {(TOKENS, DIM)}" in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("steps", [1001, 10**9])
def test_more_sampling_steps_than_the_objective_has_are_refused_when_it_is_built(steps):
    with pytest.raises(UserError, match=f"sampling.steps is {steps}; give 1 to 1000"):
        make(sampling=SamplingConfig(steps=steps))


def test_a_size_that_does_not_divide_into_latents_is_refused():
    with pytest.raises(UserError, match="size 10 is not a multiple of the latents' 4 pixels"):
        make(size=10)


def test_the_resampler_gives_the_denoiser_its_tokens(tokens):
    detokenizer = make(condition_resampler=RESAMPLER)
    assert detokenizer.condition(tokens).shape == (6, 2, 6)
    assert make().condition(tokens) is tokens


def test_a_diffusers_unet_can_be_the_denoiser(video, tokens, null):
    detokenizer = make(denoiser=UNET, latents=partial(BlockDCTLatents, 2, 4, 1, 1.0))
    loss = detokenizer.loss(video[:2], tokens[:2], generator=seeded())
    loss.backward()
    assert loss.isfinite()
    assert detokenizer.denoiser.model.conv_in.weight.grad.abs().sum() > 0
    sampling = SamplingConfig(steps=2, guidance=2.0)
    clips = detokenizer.decode(tokens[:2], null_tokens_QC=null, sampling=sampling, generator=seeded())
    assert clips.shape == video[:2].shape
    assert clips.isfinite().all()


def test_a_diffusers_model_gets_frames_on_the_axis_it_expects(tokens):
    detokenizer = make(denoiser=UNET, latents=partial(BlockDCTLatents, 2, 4, 1, 1.0))
    seen = []
    detokenizer.denoiser.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    detokenizer.decode(tokens[:1], generator=seeded())
    assert set(seen) == {(1, 6, FRAMES, SIZE // 2, SIZE // 2)}


@pytest.mark.parametrize("changes", [{}, {"condition_resampler": RESAMPLER}, {"denoiser": UNET}])
def test_the_config_survives_json(changes):
    config = json.loads(json.dumps(asdict(make(**changes).config)))
    again = VideoDetokenizer(DetokenizerConfig(**config)).config
    assert json.loads(json.dumps(asdict(again))) == config


@pytest.mark.parametrize("changes", [{}, {"condition_resampler": RESAMPLER}])
def test_a_component_decodes_like_the_module_that_was_saved(tmp_path, tokens, changes):
    detokenizer = make(**changes)
    save_component(detokenizer, tmp_path / "detokenizer")
    loaded = load_component(tmp_path / "detokenizer", VideoDetokenizer)
    assert loaded.config == detokenizer.config
    assert torch.equal(loaded.decode(tokens, generator=seeded()), detokenizer.decode(tokens, generator=seeded()))


def test_a_frozen_vae_can_be_the_latents(tmp_path, video, tokens):
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=[4], latent_channels=2, norm_num_groups=2).save_pretrained(tmp_path / "vae")
    detokenizer = make(latents=partial(ImageVAELatents, str(tmp_path / "vae")), size=SIZE)
    detokenizer.train()
    losses = [detokenizer.loss(video, tokens, generator=seeded()) for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert all(value.grad is None for value in detokenizer.latents.parameters())
    assert not detokenizer.latents.vae.training
    assert detokenizer.decode(tokens, generator=seeded()).shape == video.shape


def test_a_component_with_a_vae_needs_the_vae_folder_only_once(tmp_path, video, tokens):
    AutoencoderKL(block_out_channels=[4], latent_channels=2, norm_num_groups=2).save_pretrained(tmp_path / "vae")
    detokenizer = make(latents=partial(ImageVAELatents, str(tmp_path / "vae")), size=SIZE)
    save_component(detokenizer, tmp_path / "detokenizer")
    shutil.rmtree(tmp_path / "vae")
    again = load_component(tmp_path / "detokenizer", VideoDetokenizer)
    losses = [each.loss(video, tokens, generator=seeded()) for each in (detokenizer, again)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", ["block_dct", "vae"])
def test_with_its_own_generator_a_clips_loss_does_not_depend_on_its_batch(tmp_path, video, tokens, null, kind):
    AutoencoderKL(block_out_channels=[4], latent_channels=2, norm_num_groups=2).save_pretrained(tmp_path / "vae")
    changes = {"latents": partial(ImageVAELatents, str(tmp_path / "vae"))} if kind == "vae" else {}
    detokenizer = make(**changes)
    settings = {"terminal_timestep_prob": 0.5, "condition_dropout": 0.5, "null_tokens_QC": null}

    def loss(indices):
        generators = sample_generators(0, "train", indices)
        return detokenizer.loss(video[indices], tokens[indices], generator=generators, **settings)

    alone = torch.stack([loss([index]) for index in range(6)])
    torch.testing.assert_close(loss([4, 1, 3, 0, 2, 5]), alone.mean(), rtol=1e-5, atol=1e-6)
    assert len(set(alone.tolist())) == 6


@pytest.mark.parametrize("denoiser", [UNET, partial(VideoDiT, width=12, layers=2, heads=2)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_keeps_less_and_changes_neither_loss_nor_gradients(denoiser, precision):
    video, tokens = torch.rand(2, FRAMES, 3, SIZE, SIZE) * 2 - 1, torch.randn(2, TOKENS, DIM)

    def train(*, checkpointing):
        detokenizer = make(denoiser=partial(denoiser, gradient_checkpointing=checkpointing))
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.nbytes) or one, lambda one: one)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = detokenizer.loss(video, tokens, generator=torch.Generator().manual_seed(1))
        loss.backward()
        return loss.detach(), {name: value.grad for name, value in detokenizer.named_parameters()}, sum(kept)

    (loss, gradients, kept), (plain_loss, plain_gradients, all_kept) = (
        train(checkpointing=True),
        train(checkpointing=False),
    )
    assert kept < 0.5 * all_kept
    torch.testing.assert_close(loss, plain_loss, rtol=0, atol=0)
    torch.testing.assert_close(gradients, plain_gradients, rtol=0, atol=0)


def test_the_token_sizes_are_needed_and_a_contradicting_one_is_refused():
    with pytest.raises(UserError, match="needs the number and the width of its tokens"):
        VideoDetokenizer(make_config(num_tokens=None))
    config = make_config(num_tokens=None, token_dim=None).for_tokens(7, 9)
    assert (config.num_tokens, config.token_dim) == (7, 9)
    assert config.for_tokens(7, 9) == config
    with pytest.raises(UserError, match=r"detokenizer\.num_tokens is 7, and the tokenizer gives 8 tokens of width 9"):
        config.for_tokens(8, 9)


class Weighted(VPrediction):
    """Weighs clips by their time."""

    def weight(self, time_B):
        return time_B / 500


def test_an_objectives_weight_multiplies_each_clips_error(video, tokens, monkeypatch):
    plain, weighted = make(), make(objective=partial(Weighted, snr_shift=2.0))
    weighted.load_state_dict(plain.state_dict())
    times = torch.tensor([0, 100, 200, 500, 900, 999])
    losses = []
    for clip in range(6):
        monkeypatch.setattr(
            plain.objective, "sample_times", lambda *args, clip=clip, **settings: times[clip : clip + 1]
        )
        generator = sample_generators(0, "train", [clip])
        losses.append(plain.loss(video[clip : clip + 1], tokens[clip : clip + 1], generator=generator))
    monkeypatch.setattr(weighted.objective, "sample_times", lambda *args, **settings: times)
    found = weighted.loss(video, tokens, generator=sample_generators(0, "train", range(6)))
    torch.testing.assert_close(found, (torch.stack(losses) * times / 500).mean(), rtol=1e-4, atol=1e-5)


OLD_CONFIG = {
    "latents": {
        "kind": "block_dct",
        "pretrained": None,
        "block_size": 4,
        "luma_frequencies": 4,
        "chroma_frequencies": 1,
        "scale": 1.5,
    },
    "denoiser": {
        "patch_frames": 2,
        "patch_size": 1,
        "width": 12,
        "layers": 1,
        "heads": 2,
        "condition_in_modulation": False,
        "gradient_checkpointing": False,
    },
    "condition_resampler": None,
    "noise_schedule": {
        "num_steps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "zero_terminal_snr": True,
        "snr_shift": 2.0,
        "prediction": "v_prediction",
    },
    "sampling": {"steps": 4, "guidance": 1.0, "guidance_rescale": 0.0, "eta": 0.0, "spacing": "trailing"},
    "num_frames": FRAMES,
    "size": SIZE,
    "num_tokens": TOKENS,
    "token_dim": DIM,
}
"""As an earlier version wrote the config of `make()`."""


def write_old(detokenizer, folder, **changes):
    save_component(detokenizer, folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "config": {**OLD_CONFIG, **changes}}))


def test_a_component_of_an_earlier_version_is_read(tmp_path, video, tokens):
    detokenizer = make()
    write_old(detokenizer, tmp_path / "detokenizer")
    loaded = load_component(tmp_path / "detokenizer", VideoDetokenizer)
    assert loaded.config == detokenizer.config
    assert torch.equal(loaded.decode(tokens, generator=seeded()), detokenizer.decode(tokens, generator=seeded()))


def test_a_component_of_an_earlier_version_with_a_vae_and_a_unet_is_read(tmp_path, video, tokens):
    AutoencoderKL(block_out_channels=[4], latent_channels=2, norm_num_groups=2).save_pretrained(tmp_path / "vae")
    detokenizer = make(latents=partial(ImageVAELatents, str(tmp_path / "vae"), scale=0.5), denoiser=UNET)
    unet = {"in_channels": 2, "out_channels": 2, "cross_attention_dim": DIM, **UNET.keywords["config"]}
    denoiser = {"diffusers_class": "UNet3DConditionModel", "arguments": unet, "gradient_checkpointing": False}
    latents = {**OLD_CONFIG["latents"], "kind": "vae", "pretrained": "gone", "scale": 0.5}
    write_old(detokenizer, tmp_path / "detokenizer", latents=latents, denoiser=denoiser)
    detokenizer.latents.vae.save_config(tmp_path / "detokenizer" / "vae")
    loaded = load_component(tmp_path / "detokenizer", VideoDetokenizer)
    # The U-Net has dropout.
    losses = [each.eval().loss(video, tokens, generator=seeded()) for each in (detokenizer, loaded)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("part", ["latents", "denoiser", "objective"])
def test_a_part_of_a_package_that_nobody_trusts_is_not_imported(tmp_path, part):
    save_component(make(), tmp_path / "detokenizer")
    file = tmp_path / "detokenizer" / "config.json"
    described = json.loads(file.read_text())
    described["config"][part]["class_path"] = "stranger.Part"
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"'stranger\.Part', which is not imported"):
        load_component(tmp_path / "detokenizer", VideoDetokenizer)


@pytest.mark.parametrize("shape", [(FRAMES, 3, SIZE, SIZE // 2), (FRAMES + 1, 3, SIZE, SIZE)])
def test_clips_of_another_size_are_refused(tokens, shape):
    message = rf"{shape[0]} frames of {SIZE} x {shape[3]}, and the de-tokenizer takes {FRAMES} of {SIZE} x {SIZE}"
    with pytest.raises(UserError, match=message):
        make().loss(torch.zeros(6, *shape), tokens, generator=seeded())
