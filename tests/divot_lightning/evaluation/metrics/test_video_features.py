"""Feature networks come from a TorchScript file or from a name, and say what they are."""

import hashlib

import pytest
import torch
from torch import nn

from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.video_features import load_video_features


class MeanColour(nn.Module):
    """A stand-in for I3D with the same arguments."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        scaled = x * (2.0 / 255.0) - 1.0 if rescale else x
        means = scaled.flatten(2).mean(dim=2)
        return means if return_features else means[:, :1]


@pytest.fixture
def script(tmp_path):
    torch.jit.script(MeanColour()).save(str(tmp_path / "network.pt"))
    return tmp_path / "network.pt"


def clips(count=6):
    return torch.randint(0, 256, (count, 4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_torchscript_file_is_called_as_i3d_is_and_its_hash_is_recorded(script):
    features = load_video_features(str(script))
    expected = clips().double().mean(dim=(1, 3, 4)) * 2 / 255 - 1
    torch.testing.assert_close(features(clips()), expected, rtol=1e-5, atol=1e-5)
    assert features.source["sha256"] == hashlib.sha256(script.read_bytes()).hexdigest()
    assert features.source["options"]["return_features"] is True


def test_a_module_can_be_named():
    features = load_video_features("torch.nn:Flatten")
    assert features(clips()).shape == (6, 4 * 3 * 8 * 8)
    assert features.source == {"network": "torch.nn:Flatten", "options": {}}


@pytest.mark.parametrize(
    ("name", "shown"),
    [("nowhere.pt", "nowhere.pt"), ("torch.nn:Flaten", "Flaten"), ("no.such:thing", "no.such"), ("math:pi", "math:pi")],
)
def test_what_cannot_be_loaded_is_named(name, shown):
    with pytest.raises(UserError, match=shown):
        load_video_features(name)


def test_a_file_that_is_no_script_is_named(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"no script")
    with pytest.raises(UserError, match=r"weights\.pt is no TorchScript"):
        load_video_features(str(tmp_path / "weights.pt"))


def test_a_network_that_does_not_give_one_vector_per_clip_is_refused():
    with pytest.raises(UserError, match=r"gives \(6, 3, 4, 8, 8\)"):
        load_video_features("torch.nn:Identity")(clips())


def test_a_network_with_more_features_than_a_covariance_can_hold_is_refused():
    with pytest.raises(UserError, match="gives 9216 features"):
        load_video_features("torch.nn:Flatten")(torch.zeros(2, 3, 3, 32, 32, dtype=torch.uint8))


def test_a_failing_network_says_with_what_options(script):
    with pytest.raises(UserError, match="'rescal': True"):
        load_video_features(str(script), options={"rescal": True})(clips())
