import torch

from divot_heads.denoiser import MLPDenoiser, sinusoidal_embedding


def test_denoiser_starts_as_the_zero_function():
    denoiser = MLPDenoiser(feature_dim=4, condition_dim=6, width=8, depth=2)
    assert not denoiser(torch.randn(5, 4), torch.arange(5), torch.randn(5, 6)).any()


def test_rows_do_not_see_each_other():
    torch.manual_seed(0)
    denoiser = MLPDenoiser(4, 6, 8, 2)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter)
    noisy, steps, condition = torch.randn(5, 4), torch.arange(5), torch.randn(5, 6)
    whole = denoiser(noisy, steps, condition)
    torch.testing.assert_close(denoiser(noisy[2:3], steps[2:3], condition[2:3]), whole[2:3])


def test_embedding_tells_the_thousand_steps_apart():
    embedded = sinusoidal_embedding(torch.arange(1000), 16)
    distances = torch.cdist(embedded, embedded) + 9 * torch.eye(1000)
    assert distances.min() > 1e-2
