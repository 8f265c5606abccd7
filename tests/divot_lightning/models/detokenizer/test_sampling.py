import numpy as np
import pytest
import torch

from divot_lightning.models.detokenizer.sampling import guide


def slow_guide(conditional, unconditional, scale, rescale):
    result = np.empty_like(conditional)
    for sample in range(len(conditional)):
        guided = unconditional[sample] * (1 - scale) + scale * conditional[sample]
        factor = np.std(conditional[sample], ddof=1) / np.std(guided, ddof=1)
        result[sample] = rescale * guided * factor + (1 - rescale) * guided
    return result


@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (7.5, 0.0), (7.5, 0.7), (3.0, 1.0), (0.0, 0.5)])
def test_guidance_equals_a_slow_reference(scale, rescale):
    pair = [torch.randn(3, 4, 2, 5, dtype=torch.float64) * factor for factor in (1.0, 0.3)]
    expected = slow_guide(*(part.numpy() for part in pair), scale, rescale)
    torch.testing.assert_close(guide(*pair, scale, rescale).numpy(), expected)


def test_full_rescaling_gives_back_the_contrast_of_each_sample():
    conditional, unconditional = torch.randn(4, 50) * torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.randn(4, 50)
    guided = guide(conditional, unconditional, 7.5, 1.0)
    torch.testing.assert_close(guided.std(1), conditional.std(1))


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_predictions_without_contrast_stay_finite(value):
    flat = torch.full((2, 6), value)
    assert guide(flat, flat, 7.5, 0.7).isfinite().all()
    assert torch.equal(guide(flat, flat, 7.5, 0.0), flat)
