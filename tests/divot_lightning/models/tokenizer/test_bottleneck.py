from dataclasses import asdict, replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from divot_lightning.checkpoint.components import load_component, read_settings, save_component
from divot_lightning.errors import UserError
from divot_lightning.models.randomness import sample_generators
from divot_lightning.models.tokenizer.bottleneck import (
    INITIAL_STD,
    BottleneckConfig,
    TokenBottleneck,
    keep_leading,
    kept_counts,
    kl_to_standard_normal,
    to_sphere,
)
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from tests.divot_lightning.models.tokenizer.test_video_tokenizer import clip, tiny

ALL_ON = BottleneckConfig(sphere=True, kl_weight=0.1, noise=0.5, nested_dropout="uniform")


def tokens(batch=4, count=6, width=8):
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(1))


def built(seed, **options):
    torch.manual_seed(seed)
    return VideoTokenizer(tiny(bottleneck=BottleneckConfig(**options)))


def test_without_options_tokens_pass_unchanged_and_no_random_number_is_drawn():
    bottleneck, given = TokenBottleneck(BottleneckConfig(), 8), tokens()
    state = torch.get_rng_state()
    perturbed, divergence = bottleneck.perturb(given)
    assert perturbed is bottleneck(given) is given
    assert divergence is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not bottleneck.state_dict()


@pytest.mark.parametrize("options", [{"sphere": True}, {"noise": 1.0}, {"nested_dropout": "uniform"}, {"kl_weight": 1}])
def test_no_option_changes_the_initial_weights_of_the_tokenizer(options):
    plain, other = built(3).state_dict(), built(3, **options).state_dict()
    added = {"bottleneck.log_variance.weight", "bottleneck.log_variance.bias"} if "kl_weight" in options else set()
    assert set(other) - set(plain) == added
    assert all(torch.equal(other[name], value) for name, value in plain.items())


def test_tokens_on_the_sphere_have_the_norm_of_the_root_of_their_width_and_keep_their_direction():
    plain, sphere = built(0), built(0, sphere=True)
    video = clip()
    before, after = plain(video), sphere(video)
    torch.testing.assert_close(after.norm(dim=-1), torch.full((2, 3), 8**0.5))
    torch.testing.assert_close(torch.cosine_similarity(before, after, dim=-1), torch.ones(2, 3))


def test_the_kl_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)
    assert kl_to_standard_normal(torch.zeros(3), torch.zeros(3)) == 0


def test_kl_tokens_are_samples_around_the_tokens_with_the_variance_of_the_layer():
    torch.manual_seed(0)
    bottleneck = TokenBottleneck(BottleneckConfig(kl_weight=1e-3), 8)
    given = tokens(4000, 2)
    perturbed, divergence = bottleneck.perturb(given, torch.Generator().manual_seed(2))
    error = perturbed - given
    assert error.std().item() == pytest.approx(INITIAL_STD, rel=0.02)
    assert abs(error.mean().item()) < 0.002
    expected = kl_divergence(Normal(given, torch.full_like(given, INITIAL_STD)), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(divergence, expected)


def test_the_kl_term_trains_the_variance_towards_that_of_its_optimum():
    # Without another loss the divergence is smallest at variance 1, whatever the mean.
    torch.manual_seed(0)
    bottleneck = TokenBottleneck(BottleneckConfig(kl_weight=1.0), 4)
    optimizer = torch.optim.Adam(bottleneck.parameters(), lr=0.1, fused=True)
    for _ in range(150):
        optimizer.zero_grad()
        bottleneck.perturb(tokens(16, 3, 4))[1].backward()
        optimizer.step()
    assert bottleneck.log_variance(tokens(16, 3, 4)).abs().max() < 0.05


def test_the_noise_of_a_clip_has_one_deviation_and_those_are_uniform_up_to_the_largest():
    bottleneck = TokenBottleneck(BottleneckConfig(noise=0.8), 8)
    given = torch.zeros(2000, 40, 8)
    perturbed, _ = bottleneck.perturb(given, torch.Generator().manual_seed(2))
    std_B = perturbed.flatten(1).std(dim=1)
    assert std_B.max() < 0.8 * 1.15
    quantiles = torch.quantile(std_B, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.2, 0.4, 0.6]), atol=0.03, rtol=0)
    first, second = perturbed[:, :20].flatten(1).std(dim=1), perturbed[:, 20:].flatten(1).std(dim=1)
    assert torch.corrcoef(torch.stack([first, second]))[0, 1] > 0.95


@pytest.mark.parametrize(("rule", "allowed"), [("uniform", {1, 2, 3, 4, 5, 6}), ("powers_of_two", {1, 2, 4, 6})])
def test_nested_dropout_keeps_leading_tokens_alone_and_each_number_equally_often(rule, allowed):
    bottleneck, given = TokenBottleneck(BottleneckConfig(nested_dropout=rule), 8), tokens(3000)
    perturbed, _ = bottleneck.perturb(given, torch.Generator().manual_seed(0))
    present_BQ = (perturbed != 0).all(dim=-1)
    counts, times = present_BQ.sum(dim=1).unique(return_counts=True)
    assert set(counts.tolist()) == allowed
    assert (times / 3000 - 1 / len(allowed)).abs().max() < 0.03
    for count in allowed:
        rows = present_BQ.sum(dim=1) == count
        assert torch.equal(perturbed[rows, :count], given[rows, :count])
        assert not perturbed[rows, count:].any()


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 16, 17, 64])
def test_powers_of_two_always_include_all_tokens_once(num_tokens):
    counts = kept_counts("powers_of_two", num_tokens)
    assert counts == sorted({*(1 << power for power in range(7) if 1 << power <= num_tokens), num_tokens})


def test_a_clip_is_perturbed_alike_in_every_batch():
    torch.manual_seed(0)
    bottleneck, given = TokenBottleneck(ALL_ON, 8), tokens(5)
    together, _ = bottleneck.perturb(given, sample_generators(0, "tokens", range(5)))
    alone, _ = bottleneck.perturb(given[3:4], sample_generators(0, "tokens", [3]))
    torch.testing.assert_close(together[3:4], alone)
    assert not torch.equal(together[3], together[4])


def test_perturbed_tokens_are_on_the_sphere_again():
    torch.manual_seed(0)
    options = replace(ALL_ON, nested_dropout="none")
    perturbed, _ = TokenBottleneck(options, 8).perturb(to_sphere(tokens()))
    torch.testing.assert_close(perturbed.norm(dim=-1), torch.full((4, 6), 8**0.5))


def test_perturbed_tokens_keep_the_dtype_of_half_precision():
    perturbed, _ = TokenBottleneck(replace(ALL_ON, kl_weight=0.0), 8).perturb(tokens().bfloat16())
    assert perturbed.dtype == torch.bfloat16


def test_a_tokenizer_with_all_options_is_stored_and_built_again(tmp_path):
    tokenizer = built(0, **asdict(ALL_ON)).eval()
    save_component(tokenizer, tmp_path / "tokenizer")
    loaded, video = load_component(tmp_path / "tokenizer", VideoTokenizer).eval(), clip()
    assert loaded.config.bottleneck == ALL_ON
    assert read_settings(tmp_path / "tokenizer", VideoTokenizer, TokenizerConfig).bottleneck == ALL_ON
    assert torch.equal(loaded(video), tokenizer(video))
    assert torch.equal(loaded.bottleneck.log_variance.weight, tokenizer.bottleneck.log_variance.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_weight": -1.0}, r"bottleneck\.kl_weight is -1\.0; it must be at least 0"),
        ({"noise": float("nan")}, r"bottleneck\.noise is nan"),
        ({"nested_dropout": "zipf"}, r"is 'zipf'; choose one of: none, uniform, powers_of_two"),
    ],
)
def test_values_without_a_meaning_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        BottleneckConfig(**options)


def test_a_number_of_tokens_outside_the_clip_is_refused():
    for count in (0, 7):
        with pytest.raises(UserError, match=f"num_tokens is {count}; a clip has 6 tokens, so give 1 to 6"):
            keep_leading(tokens(), count)
    assert torch.equal(keep_leading(tokens(), 6), tokens())
