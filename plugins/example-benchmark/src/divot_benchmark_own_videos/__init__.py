"""Questions about your own videos, with several accepted answers each."""

from divot_benchmark_own_videos.accepted_answers import AcceptedAnswers
from divot_benchmark_own_videos.own_videos import OwnVideos

__all__ = ["AcceptedAnswers", "OwnVideos"]
