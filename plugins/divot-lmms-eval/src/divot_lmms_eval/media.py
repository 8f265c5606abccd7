"""Turn what lmms-eval's tasks give as media into clips of a run. No lmms-eval in here."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from divot_lightning import ClipFeatures, DivotPipeline
from divot_lightning.errors import UserError

PictureLists = Literal["video", "pictures"]
"""What a list of several pictures is: frames of a video, in order, or pictures of their own."""


class MediaEncoder:
    """Encode the media of requests; those of the last request are kept, since its neighbours often have the same.

    Args:
        pipeline: The models.
        max_clips: Most clips of a video.
        picture_lists: What a list of several pictures is.
    """

    def __init__(self, pipeline: DivotPipeline, max_clips: int, picture_lists: PictureLists) -> None:
        if picture_lists not in ("video", "pictures"):
            raise UserError(f"picture_lists is {picture_lists!r}; choose video or pictures")
        self.pipeline, self.max_clips, self.picture_lists = pipeline, max_clips, picture_lists
        self._last: tuple[Any, ClipFeatures] | None = None

    def encode(self, key: Any, media: Sequence[Any] | Any | None) -> ClipFeatures:
        """Return the features of a request's media; none for a question about nothing but text.

        Args:
            key: Identifies the media; the same as in the last call returns the same features.
            media: As tasks return them: paths of videos and pictures, and PIL pictures, in a list.
        """
        if self._last is None or self._last[0] != key:
            self._last = (key, self._encode(media))
        return self._last[1]

    def _encode(self, media: Sequence[Any] | Any | None) -> ClipFeatures:
        listed = [] if media is None else list(media) if isinstance(media, list | tuple) else [media]
        for one in listed:
            if isinstance(one, dict):
                raise UserError(f"the task gives {sorted(one)}, such as sound; Divot sees videos and pictures only")
        if not listed:
            config = self.pipeline.models.video_llm.config
            return ClipFeatures(torch.zeros(0, config.num_queries, config.feature_dim), ())
        if self.picture_lists == "video" and len(listed) > 1 and not any(isinstance(one, str) for one in listed):
            return self.pipeline.encode(_frames(listed), max_clips=self.max_clips)
        return self.pipeline.encode([_picture(one) for one in listed], max_clips=self.max_clips)


def _picture(media: Any) -> Any:
    """Return a path as it is, and a PIL picture as RGB."""
    return media if isinstance(media, str) else media.convert("RGB")


def _frames(pictures: Sequence[Any]) -> Any:
    """Return PIL pictures as a video, uint8 (F, H, W, 3); all get the size of the first."""
    size = pictures[0].size
    return np.stack([np.asarray(_picture(one).resize(size)) for one in pictures])
