"""The next-word loss in tiles equals the loss in one piece, and holds one tile's logits at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from divot_lightning.models.video_llm.losses import next_word_loss, num_logit_tiles
from divot_lightning.parts.sequences.rows import collate_sequences
from divot_lightning.parts.sequences.tokens import IGNORED, TokenSequence

WORDS, WIDTH = 50, 8


class Counting(nn.Linear):
    """An output layer that notes how many targets it got in each call."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WORDS)
        self.calls: list[int] = []

    def forward(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(hidden_TD))
        return super().forward(hidden_TD)


def _rows(learn: bool):
    sequences = []
    for length in (4, 7):
        ids = list(range(length))
        labels = ids if learn else [IGNORED] * length
        sequences.append(TokenSequence(ids, labels, [1] * length, [-1] * length, [-1] * length))
    return collate_sequences(sequences, pad_id=0)


@pytest.fixture
def layer() -> Counting:
    torch.manual_seed(0)
    return Counting()


@pytest.mark.parametrize("num_tiles", [1, 2, 5, 20])
def test_loss_and_gradients_are_those_of_all_targets_together(layer: Counting, num_tiles: int) -> None:
    hidden_BLD = torch.randn(2, 7, WIDTH, requires_grad=True)
    loss, num_targets = next_word_loss(layer, _rows(learn=True), hidden_BLD, num_tiles)
    loss.backward()
    predicting = torch.cat([hidden_BLD[0, :3], hidden_BLD[1, :6]])
    reference = functional.cross_entropy(
        predicting @ layer.weight.T + layer.bias, torch.tensor([1, 2, 3, 1, 2, 3, 4, 5, 6])
    )
    expected = torch.autograd.grad(reference, [hidden_BLD, layer.weight, layer.bias])
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close((hidden_BLD.grad, layer.weight.grad, layer.bias.grad), expected)
    assert num_targets == 9
    assert max(layer.calls) == -(-9 // num_tiles)
    assert len(layer.calls) == (1 if num_tiles == 1 else 2 * num_tiles), "the backward pass runs it again"


@pytest.mark.parametrize("num_tiles", [1, 3])
def test_without_targets_the_layer_runs_as_often_and_has_a_gradient_of_zero(layer: Counting, num_tiles: int) -> None:
    """So that a rank without targets joins the collectives of the others."""
    hidden_BLD = torch.randn(2, 7, WIDTH, requires_grad=True)
    loss, num_targets = next_word_loss(layer, _rows(learn=False), hidden_BLD, num_tiles)
    loss.backward()
    assert (loss.item(), num_targets) == (0.0, 0)
    assert len(layer.calls) == (1 if num_tiles == 1 else 2 * num_tiles), "the backward pass runs it again"
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()
    assert not hidden_BLD.grad.any()


def test_tiles_keep_the_memory_of_the_papers_vocabulary() -> None:
    assert [num_logit_tiles(words) for words in (64, 32_768, 32_769, 151_936)] == [1, 1, 2, 5]
