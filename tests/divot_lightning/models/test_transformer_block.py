import pytest
import torch
from torch import nn
from torch.nn import functional

from divot_lightning.errors import UserError
from divot_lightning.models.transformer_block import SelfAttention, TransformerBlock, check_heads, quick_gelu


def test_self_attention_equals_torch_multihead_attention():
    ours, reference = SelfAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x), reference(x, x, x, need_weights=False)[0])


def test_block_equals_torch_pre_norm_encoder_layer():
    ours = TransformerBlock(12, 3, functional.gelu)
    reference = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    nn.init.normal_(ours.attention_norm.weight)
    names = {
        "attention.qkv.": "self_attn.in_proj_",
        "attention.out.": "self_attn.out_proj.",
        "attention_norm.": "norm1.",
        "mlp_norm.": "norm2.",
        "mlp_in.": "linear1.",
        "mlp_out.": "linear2.",
    }
    renamed = {}
    for name, value in ours.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        renamed[name.replace(prefix, names[prefix])] = value
    reference.load_state_dict(renamed)
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x), reference(x), atol=1e-5, rtol=1e-5)


def test_quick_gelu_equals_its_definition():
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    torch.testing.assert_close(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))


@pytest.mark.parametrize(("width", "heads"), [(50, 4), (4, 0), (0, 1)])
def test_widths_that_do_not_divide_into_heads_are_refused(width, heads):
    with pytest.raises(UserError, match=f"stage: width {width} does not divide into {heads} heads"):
        check_heads("stage", width, heads)
