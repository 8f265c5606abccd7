"""Sampling settings change the samples of a trained head and nothing else."""

import pytest
import torch
from torch import Tensor

from divot_heads.diffusion import DiffusionHead
from divot_heads.gmm import GMMHead
from divot_heads.mse import MSEHead
from divot_lightning.errors import UserError
from divot_lightning.parts.sampling import sampling_of, set_sampling


def sampled(head, seed=0):
    return head.sample(torch.zeros(1, 500, 8), generator=torch.Generator().manual_seed(seed))


def spread(head) -> float:
    return sampled(head).std(dim=1).mean().item()


def test_a_variance_scale_set_later_is_the_one_the_head_would_be_built_with():
    torch.manual_seed(0)
    head = GMMHead(8, 4, num_components=1, variance_scale=0.1)
    built = GMMHead(8, 4, num_components=1, variance_scale=0.9)
    built.load_state_dict(head.state_dict())
    narrow = spread(head)
    set_sampling(head, {"variance_scale": 0.9})
    assert torch.equal(sampled(head), sampled(built))
    assert head.init_args == built.init_args
    assert spread(head) == pytest.approx(3 * narrow, rel=1e-4)  # deviations go with the root of the variances


def test_the_loss_and_the_weights_stay_as_they_are():
    head = GMMHead(8, 4)
    batch = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    loss, weights = head(*batch), {name: value.clone() for name, value in head.state_dict().items()}
    set_sampling(head, {"variance_scale": 1.0})
    assert torch.equal(head(*batch), loss)
    assert all(torch.equal(value, weights[name]) for name, value in head.state_dict().items())


def test_strings_are_converted_to_the_types_of_the_class():
    head = DiffusionHead(8, 4, width=8, depth=1)
    set_sampling(head, {"sampling_steps": "7"})
    assert sampling_of(head) == {"sampling_steps": 7, "guidance": 1.0}


@pytest.mark.parametrize(
    ("head", "values", "message"),
    [
        (GMMHead(8, 4), {"guidance": 2}, r"GMMHead has no sampling setting guidance; it has.*variance_scale \(0.1\)"),
        (GMMHead(8, 4), {"num_components": 2}, "no sampling setting num_components"),
        (MSEHead(8, 4), {"steps": 2}, "MSEHead has no sampling setting steps; it has: none"),
        (GMMHead(8, 4), {"variance_scale": -1}, "variance_scale is -1.0"),
        (GMMHead(8, 4), {"variance_scale": "wide"}, "GMMHead cannot take .*'wide'"),
        (DiffusionHead(8, 4, width=8, depth=1), {"sampling_steps": 2000}, "sampling_steps=2000 is not allowed"),
        (DiffusionHead(8, 4, width=8, depth=1), {"sampling_steps": "7.5"}, "DiffusionHead cannot take"),
    ],
)
def test_an_unknown_or_forbidden_setting_is_refused_and_changes_nothing(head, values, message):
    before = dict(head.init_args)
    with pytest.raises(UserError, match=message) as caught:
        set_sampling(head, values)
    assert len(str(caught.value).splitlines()) <= 5
    assert head.init_args == before


class WithDerivedState(MSEHead):
    """A head that stores its setting in another form."""

    sampling_settings = ("levels",)

    def __init__(self, hidden_dim: int, feature_dim: int, levels: int | None = None) -> None:
        super().__init__(hidden_dim, feature_dim)
        self.levels = tuple(range(levels or 2))

    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator=None) -> Tensor:
        return super().sample(hidden_BQD) * len(self.levels)


def test_the_form_in_which_the_class_stores_a_setting_is_kept():
    head = WithDerivedState(8, 4)
    set_sampling(head, {"levels": "3"})
    assert head.levels == (0, 1, 2)
    assert sampling_of(head) == {"levels": 3}
