import math

import torch

from divot_heads.denoiser import MLPDenoiser


def test_denoiser_is_the_zero_function_at_first():
    denoiser = MLPDenoiser(feature_dim=4, condition_dim=6, width=8, depth=2)
    assert not denoiser(torch.randn(5, 4), torch.arange(5), torch.randn(5, 6)).any()


def test_rows_do_not_depend_on_each_other():
    torch.manual_seed(0)
    denoiser = MLPDenoiser(4, 6, 8, 2)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter)
    noisy, steps, condition = torch.randn(5, 4), torch.arange(5), torch.randn(5, 6)
    whole = denoiser(noisy, steps, condition)
    torch.testing.assert_close(denoiser(noisy[2:3], steps[2:3], condition[2:3]), whole[2:3])


def test_embedding_of_each_of_the_thousand_steps_is_distinct():
    denoiser, embeddings = MLPDenoiser(4, 6, 16, 1), []
    denoiser.time_in.register_forward_pre_hook(lambda module, args: embeddings.append(args[0]))
    denoiser(torch.zeros(1000, 4), torch.arange(1000), torch.zeros(1000, 6))
    distances = torch.cdist(embeddings[0], embeddings[0]) + 9 * torch.eye(1000)
    assert distances.min() > 1e-2


def test_embedding_of_a_step_is_that_of_the_transformer_paper():
    denoiser, embeddings = MLPDenoiser(4, 6, 8, 1), []
    denoiser.time_in.register_forward_pre_hook(lambda module, args: embeddings.append(args[0]))
    denoiser(torch.zeros(1, 4), torch.tensor([123]), torch.zeros(1, 6))
    angles = [123 * 10_000 ** (-index / 4) for index in range(4)]
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(embeddings[0], torch.tensor([expected]))
