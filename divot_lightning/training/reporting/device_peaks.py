"""The dense peak of a GPU: operations per second of its matrix products, as its data sheet gives them.

Lightning has a table, which is used for most GPUs. Its figures for H200 and H100 NVL (2.6.6) are those for matrices of
which half are zeros, twice what a dense product can reach. It knows an H200 only by names that the driver does not
give, and takes an L40 or L40S for an L4.
"""

import torch
from lightning.fabric.utilities.throughput import get_available_flops

_SXM_HOPPER = (66.9e12, 494.7e12, 989.4e12)
_NVL_HOPPER = (60e12, 417.5e12, 835.5e12)

DENSE_PEAKS = {
    "h200 nvl": _NVL_HOPPER,
    "h200": _SXM_HOPPER,  # also GH200
    "h100 nvl": _NVL_HOPPER,
    "b200": (75e12, 1.1e15, 2.25e15),
    "l40s": (91.6e12, 183e12, 362e12),
    "l40": (90.5e12, 90.5e12, 181e12),
}
"""By a part of the driver's name for the GPU, the first that fits: float32, TensorFloat-32, half precisions."""


def dense_peak(device: torch.device, dtype: torch.dtype) -> int | None:
    """Return the dense peak of a device in operations per second; None where it is not known.

    Args:
        device: Any device; only those of CUDA have a known peak.
        dtype: What matrix products are computed in: float32, bfloat16 or float16. Products of float32 count as
            TensorFloat-32 where torch may compute them so.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    if " mig " in name:
        return None  # a part of a GPU
    known = next((peaks for part, peaks in DENSE_PEAKS.items() if part in name), None)
    if known is None:
        return get_available_flops(device, dtype)
    if dtype != torch.float32:
        return int(known[2])
    return int(known[torch.get_float32_matmul_precision() != "highest"])
