import pytest
import torch
from torch import nn

from divot_lightning.testing import run_distributed
from divot_lightning.training.global_mean import LossPart, global_mean

COUNTS = {"text": (5, 0, 2), "head": (1, 3, 0), "nothing": (0, 0, 0)}
WEIGHTS = {"text": 1.0, "head": 0.5, "nothing": 2.0}


def rows(name, rank):
    return torch.randn(COUNTS[name][rank], 4, generator=torch.Generator().manual_seed(10 * rank + len(name)))


def parts_of(model, ranks):
    parts = {}
    for name, weight in WEIGHTS.items():
        data = torch.cat([rows(name, rank) for rank in ranks])
        mean = model(data).square().mean() if len(data) else 0.0 * model(torch.zeros(1, 4)).sum()
        parts[name] = LossPart(mean, len(data), weight)
    return parts


def gradient_of(ranks):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    result = global_mean(parts_of(model, ranks))
    result.loss.backward()
    return model.weight.grad, result


def gradient_of_a_rank(rank):
    gradient, result = gradient_of([rank])
    return gradient, result.mean, result.parts, result.finite


def finiteness(rank):
    losses = [torch.tensor(2.0), torch.tensor(float("nan") if rank == 1 else 4.0)]
    results = [global_mean({"loss": LossPart(loss, 1)}) for loss in losses]
    return [(result.finite, result.parts["loss"][0]) for result in results]


def test_the_average_over_uneven_processes_is_the_mean_over_everything():
    every = run_distributed(gradient_of_a_rank, 3)
    expected, result = gradient_of([0, 1, 2])
    torch.testing.assert_close(sum(gradient for gradient, *_ in every) / 3, expected)
    for _, mean, parts, finite in every:
        assert mean == pytest.approx(result.mean)
        assert parts.keys() == result.parts.keys() == {"text", "head"}
        assert {name: count for name, (_, count) in parts.items()} == {"text": 7, "head": 4}
        assert finite


def test_all_processes_learn_that_one_has_a_loss_that_is_no_number():
    assert run_distributed(finiteness, 2) == [[(True, 2.0), (False, 2.0)]] * 2


def test_one_process_needs_no_other():
    model = nn.Linear(4, 1)
    parts = parts_of(model, [0, 1])
    result = global_mean(parts)
    expected = parts["text"].mean + 0.5 * parts["head"].mean
    torch.testing.assert_close(result.loss, expected)
    assert result.mean == pytest.approx(expected.item())


def test_the_loss_is_there_before_the_device_has_computed_it():
    """A meta tensor has no value: whoever reads it fails, as reading a GPU's tensor waits."""
    loss = torch.ones(1, device="meta", requires_grad=True).sum()
    result = global_mean({"text": LossPart(loss, 3), "head": LossPart(loss, 0, 0.5)})
    result.loss.backward()
    assert result.loss.is_meta
    with pytest.raises(NotImplementedError):
        _ = result.finite
