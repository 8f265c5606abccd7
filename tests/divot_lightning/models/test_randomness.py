import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from divot_lightning.models.randomness import integer_rows, normal_rows, sample_generators, uniform_rows

CPU = torch.device("cpu")


@pytest.mark.parametrize("draw", [uniform_rows, lambda *given: integer_rows(1000, *given)])
def test_a_sample_gets_the_same_numbers_in_any_batch(draw):
    whole = draw(4, sample_generators(1, "train", [5, 6, 7, 8]), CPU)
    parts = [draw(2, sample_generators(1, "train", indices), CPU) for indices in ([5, 7], [6, 8])]
    assert torch.equal(whole, torch.stack([parts[0][0], parts[1][0], parts[0][1], parts[1][1]]))
    assert len(set(whole.tolist())) == 4


def test_seed_purpose_and_sample_index_all_matter():
    seeds = {
        sample_generators(seed, purpose, [index])[0].initial_seed()
        for seed in (0, 1)
        for purpose in ("train", "validation")
        for index in (2, 3)
    }
    assert len(seeds) == 8


@pytest.mark.parametrize("source", [None, 3])
def test_one_generator_can_serve_a_batch(source):
    def generator():
        torch.manual_seed(3)
        return None if source is None else torch.Generator().manual_seed(source)

    assert torch.equal(uniform_rows(5, generator(), CPU), torch.rand(5, generator=torch.Generator().manual_seed(3)))
    expected = torch.randint(0, 9, (5,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(integer_rows(9, 5, generator(), CPU), expected)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("each", [False, True])
def test_normal_numbers_have_the_same_bits_as_those_of_diffusers(count, each):
    def generators():
        return sample_generators(1, "train", range(count)) if each else torch.Generator().manual_seed(3)

    assert torch.equal(
        normal_rows((count, 2, 5), generators(), CPU), randn_tensor((count, 2, 5), generator=generators(), device=CPU)
    )


def test_draws_are_uniform():
    generators = sample_generators(0, "train", range(20_000))
    values = uniform_rows(20_000, generators, CPU)
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert values.var().item() == pytest.approx(1 / 12, abs=0.003)
