import torch
from torch import nn

from divot_heads.projector import two_layer_projector


def test_inner_width_is_the_output_width_as_released():
    layers = two_layer_projector(32, 132)
    assert list(layers.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [tuple(p.shape) for p in layers.parameters()] == [(132, 32), (132,), (132, 132), (132,)]
    hidden = torch.randn(2, 3, 32)
    expected = nn.functional.linear(
        nn.functional.gelu(nn.functional.linear(hidden, layers[0].weight, layers[0].bias)),
        layers[2].weight,
        layers[2].bias,
    )
    torch.testing.assert_close(layers(hidden), expected)
