import torch

from divot_lightning.models.video_llm.projectors import RELEASED_NAMES, mlp_projector


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_projector_is_two_linear_layers_around_an_exact_gelu():
    projector = mlp_projector(3, 5, 2)
    x = torch.randn(4, 6, 3)
    hidden = x @ projector.hidden.weight.T + projector.hidden.bias
    activated = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(projector(x), activated @ projector.out.weight.T + projector.out.bias)


def test_parameter_counts_of_the_paper():
    mixture_channels = 2 * 16 * 256 + 16
    with torch.device("meta"):
        assert round(count(mlp_projector(256, 4096, 4096)) / 1e6, 1) == 17.8
        assert round(count(mlp_projector(4096, mixture_channels, mixture_channels)) / 1e6) == 101


def test_names_of_the_layers_are_those_of_the_stored_weights():
    assert list(mlp_projector(3, 5, 2).state_dict()) == ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]
    released = mlp_projector(32, 132, 132, RELEASED_NAMES)
    assert list(released.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [tuple(value.shape) for value in released.parameters()] == [(132, 32), (132,), (132, 132), (132,)]
