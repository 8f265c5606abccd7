"""A fixed feature space for clips of one object on a plain background; nothing in it is learned.

The features are size and position at five times, the motion, and colour and outline at three of these times, computed
as moments of a soft foreground map. They need no readable object: a smeared or torn clip has features too, far from the
real ones. The values at all times are features, not their standard deviation over time. That would be almost zero for
real clips, and after a division by so small a scale a little flicker would outweigh everything else.

Shape letters: B batch, F frames, H height, W width, T times, K features, S outline features.
"""

import torch
from torch import Tensor

NUM_TIMES = 5
LOOK_TIMES = (0, 2, 4)  # indices of the times at which colour and outline are measured
OUTLINE_FEATURES = ("spread_rows", "spread_columns", "tail", "threefold", "fourfold")
FEATURE_NAMES = (
    *(f"{name}_{time}" for time in range(NUM_TIMES) for name in ("mass", "row", "column")),
    *("motion_rows", "motion_columns", "pace"),
    *(f"{name}_{time}" for time in LOOK_TIMES for name in ("red", "green", "blue", *OUTLINE_FEATURES)),
    "edge",
)
# Differences from the background below this fraction of the range are compression noise.
NOISE_FLOOR = 0.08


def foreground(video_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much each pixel differs from the clip's background, and by which colour.

    Args:
        video_BTCHW: float in [0, 1].

    Returns:
        weight_BTHW in [0, 1], zero below the noise floor, and offset_BTCHW from the background. The background is the
        median colour of each clip, which holds as long as objects fill less than half of it.
    """
    background_BC = video_BTCHW.transpose(1, 2).flatten(2).median(dim=2).values
    offset_BTCHW = video_BTCHW - background_BC[:, None, :, None, None]
    weight_BTHW = offset_BTCHW.square().sum(dim=2).sqrt()
    return ((weight_BTHW - NOISE_FLOOR).clamp_min(0.0) / (1.0 - NOISE_FLOOR)).clamp_max(1.0), offset_BTCHW


def _peak(weight_BTHW: Tensor) -> Tensor:
    return weight_BTHW.amax(dim=(2, 3)).clamp_min(0.05)


def _edge(weight_BTHW: Tensor, mass_BT: Tensor) -> Tensor:
    """Return how sharp the outline is, (B, T).

    It sums squared steps between neighbours; the sum of the steps is the same for a sharp edge and a blurred one.
    """
    peak_BT = _peak(weight_BTHW)
    cover_BTHW = weight_BTHW / peak_BT[:, :, None, None]
    squares_BT = [cover_BTHW.diff(dim=dim).square().sum(dim=(2, 3)) for dim in (2, 3)]
    return (squares_BT[0] + squares_BT[1]) / (mass_BT / peak_BT).sqrt()


def _outline(weight_BTHW: Tensor, row_BTHW: Tensor, column_BTHW: Tensor, mass_BT: Tensor) -> Tensor:
    """Return moments of the outline around the centroid, scaled by the object's own area, (B, T, S).

    The strongest pixel of a frame counts as fully covered, so that a pale object differs in colour only. The
    logarithms keep a few torn clips from dominating the covariance.
    """
    area_BT = mass_BT / _peak(weight_BTHW)

    def moment(values_BTHW: Tensor) -> Tensor:
        return (weight_BTHW * values_BTHW).sum(dim=(2, 3)) / mass_BT

    radius2_BTHW = row_BTHW.square() + column_BTHW.square()
    size2_BT = moment(radius2_BTHW).clamp_min(1e-6)
    angle_BTHW = torch.atan2(row_BTHW, column_BTHW)
    harmonics = []
    for order in (3, 4):
        power_BTHW = radius2_BTHW ** (order / 2)
        cosine_BT, sine_BT = (
            moment(power_BTHW * wave(order * angle_BTHW)) / size2_BT ** (order / 2) for wave in (torch.cos, torch.sin)
        )
        # The toy's triangle points up, a sine; its square and cross differ in the sign of the cosine.
        harmonics.append(sine_BT if order == 3 else cosine_BT)
    return torch.stack(
        [
            (moment(row_BTHW.square()) / area_BT).clamp_min(1e-3).log(),
            (moment(column_BTHW.square()) / area_BT).clamp_min(1e-3).log(),
            (moment(radius2_BTHW.square()) / size2_BT.square()).clamp_min(1e-3).log(),
            *harmonics,
        ],
        dim=2,
    )


def toy_clip_features(video_BFCHW: Tensor) -> Tensor:
    """Describe clips by position, motion, colour and outline.

    Args:
        video_BFCHW: uint8 in [0, 255], at least five frames.

    Returns:
        features_BK, float64, in the order of `FEATURE_NAMES`; finite for any clip, an empty one included.
    """
    num_frames, height, width = video_BFCHW.shape[1], *video_BFCHW.shape[3:]
    times_T = torch.linspace(0, num_frames - 1, NUM_TIMES).round().long()
    weight_BTHW, offset_BTCHW = foreground(video_BFCHW[:, times_T].to(torch.float64) / 255)
    total_BT = weight_BTHW.sum(dim=(2, 3))
    mass_BT = total_BT.clamp_min(1e-3)  # an empty frame has its centroid in the corner and no colour
    grid_H, grid_W = torch.arange(height).double(), torch.arange(width).double()
    row_BT = (weight_BTHW.sum(dim=3) @ grid_H) / mass_BT
    column_BT = (weight_BTHW.sum(dim=2) @ grid_W) / mass_BT
    position_BT3 = torch.stack([total_BT / (height * width), row_BT / height, column_BT / width], dim=2)
    steps_BT2 = position_BT3[:, :, 1:].diff(dim=1)
    motion_B3 = torch.cat([steps_BT2.sum(dim=1), steps_BT2.norm(dim=2).sum(dim=1, keepdim=True)], dim=1)
    colour_BT3 = (offset_BTCHW * weight_BTHW[:, :, None]).sum(dim=(3, 4)) / mass_BT[:, :, None]
    from_row = grid_H[:, None] - row_BT[:, :, None, None] + torch.zeros(width)
    from_column = grid_W - column_BT[:, :, None, None] + torch.zeros(height, 1)
    look_BTK = torch.cat([colour_BT3, _outline(weight_BTHW, from_row, from_column, mass_BT)], dim=2)
    edge_B1 = _edge(weight_BTHW, mass_BT).mean(dim=1, keepdim=True)
    return torch.cat([position_BT3.flatten(1), motion_B3, look_BTK[:, LOOK_TIMES].flatten(1), edge_B1], dim=1)
