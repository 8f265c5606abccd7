"""The dense peak of a GPU is found by the name that its driver gives."""

import pytest
import torch

from divot_lightning.training.reporting.device_peaks import dense_peak

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H200", 989.4e12, 66.9e12),
        ("NVIDIA GH200 480GB", 989.4e12, 66.9e12),
        ("NVIDIA H200 NVL", 835.5e12, 60e12),
        ("NVIDIA H100 NVL", 835.5e12, 60e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 66.9e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA B200", 2250e12, 75e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L40", 181e12, 90.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
    ],
)
def test_the_peak_is_that_of_dense_products(
    monkeypatch: pytest.MonkeyPatch, name: str, half: float, single: float
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda._is_ampere_or_later", lambda: True)
    assert dense_peak(GPU, torch.bfloat16) == int(half)
    assert dense_peak(GPU, torch.float16) == int(half)
    assert dense_peak(GPU, torch.float32) == int(single)


def test_products_of_float32_count_as_torch_may_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert dense_peak(GPU, torch.float32) == int(494.7e12)


@pytest.mark.parametrize("name", ["NVIDIA H200 MIG 1g.18gb", "NVIDIA Something 9000"])
def test_parts_of_a_gpu_and_unknown_ones_have_no_peak(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert dense_peak(GPU, torch.bfloat16) is None


def test_a_cpu_has_no_known_peak() -> None:
    assert dense_peak(torch.device("cpu"), torch.float32) is None
