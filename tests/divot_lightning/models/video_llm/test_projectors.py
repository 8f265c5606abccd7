import torch

from divot_lightning.models.video_llm.projectors import MLPProjector


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_projector_is_two_linear_layers_around_an_exact_gelu():
    projector = MLPProjector(3, 5, 2)
    x = torch.randn(4, 6, 3)
    hidden = x @ projector.hidden.weight.T + projector.hidden.bias
    activated = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(projector(x), activated @ projector.out.weight.T + projector.out.bias)


def test_parameter_counts_of_the_paper():
    mixture_channels = 2 * 16 * 256 + 16
    with torch.device("meta"):
        assert round(count(MLPProjector(256, 4096, 4096)) / 1e6, 1) == 17.8
        assert round(count(MLPProjector(4096, mixture_channels, mixture_channels)) / 1e6) == 101
