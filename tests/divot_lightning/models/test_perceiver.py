import pytest
import torch

from divot_lightning.errors import UserError
from divot_lightning.models.perceiver import PerceiverAttention, PerceiverResampler

SIZES = {"dim": 24, "depth": 2, "dim_head": 5, "heads": 3, "num_queries": 4, "embedding_dim": 7, "output_dim": 6}


def test_any_input_length_gives_the_same_number_of_queries():
    resampler = PerceiverResampler(**SIZES)
    for length in (1, 3, 50):
        assert resampler(torch.randn(2, length, 7)).shape == (2, 4, 6)


def test_order_of_the_input_does_not_matter():
    resampler = PerceiverResampler(**SIZES)
    x = torch.randn(2, 9, 7)
    torch.testing.assert_close(resampler(x[:, torch.randperm(9)]), resampler(x), atol=1e-5, rtol=1e-5)


def test_attention_equals_a_loop_over_heads_and_queries():
    attention = PerceiverAttention(8, dim_head=5, heads=3).double()
    x, queries = torch.randn(1, 6, 8).double(), torch.randn(1, 4, 8).double()
    normed_queries = attention.query_norm(queries)[0]
    source = torch.cat([attention.input_norm(x)[0], normed_queries])
    key_rows, value_rows = attention.to_key_value.weight.split(15)
    read = torch.zeros(4, 15, dtype=torch.float64)
    for head in range(3):
        rows = slice(5 * head, 5 * head + 5)
        for index, query in enumerate(normed_queries):
            scores = (source @ key_rows[rows].T) @ (attention.to_query.weight[rows] @ query) / 5**0.5
            read[index, rows] = scores.softmax(0) @ (source @ value_rows[rows].T)
    torch.testing.assert_close(attention(x, queries)[0], read @ attention.out.weight.T)


def test_output_is_normalised_over_channels():
    resampler = PerceiverResampler(**SIZES)
    torch.nn.init.normal_(resampler.output_projection.weight)
    output = resampler(torch.randn(2, 9, 7))
    torch.testing.assert_close(output.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.var(-1, unbiased=False), torch.ones(2, 4), atol=1e-3, rtol=0)


def test_gradient_reaches_every_weight():
    resampler = PerceiverResampler(**SIZES)
    (resampler(torch.randn(2, 9, 7)) * torch.randn(4, 6)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in resampler.parameters())


@pytest.mark.parametrize("name", sorted(SIZES))
def test_sizes_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is -2"):
        PerceiverResampler(**{**SIZES, name: -2})


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        in_the_tokenizer = PerceiverResampler()
        for_the_condition = PerceiverResampler(num_queries=125, embedding_dim=256, output_dim=1024)
    assert millions(in_the_tokenizer) == 76.9
    assert millions(for_the_condition) == 77.0


def millions(module):
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)
