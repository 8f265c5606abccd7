"""The kinds of data that the paper trains on, from tars and from jsonl files, in one mixture."""

import json
from itertools import islice

import pytest
import torch

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.shards.source_settings import SourceConfig
from divot_datamodules.video_text import VideoTextData
from divot_lightning.parts.segments import Clips, Text

TURNS = [
    {"from": "human", "value": "<video>\nwhat is it ?"},
    {"from": "gpt", "value": "numbers"},
    {"from": "human", "value": "which ?"},
    {"from": "gpt", "value": "all"},
]
STORY = {"instruction": "count", "texts": ["up", "down"]}


def write_jsonl(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def media(tmp_path, numbered_file, picture_file):
    """A folder of media as the released code's users have it."""
    (tmp_path / "media").mkdir()
    for name, data in (
        ("long.mp4", numbered_file(96)),
        ("short.mp4", numbered_file(24)),
        ("one.mp4", numbered_file(16)),
        ("still.jpg", picture_file()),
    ):
        (tmp_path / "media" / name).write_bytes(data)
    return tmp_path / "media"


@pytest.fixture
def sources(tmp_path, media, write_tar):
    """A source of each kind; the weights are the share of the steps' samples."""
    read = {name: (media / name).read_bytes() for name in ("long.mp4", "one.mp4", "still.jpg")}
    caption = b'{"caption": "numbers go by"}'
    images = write_tar(tmp_path / "images.tar", [("i.jpg", read["still.jpg"]), ("i.txt", b"a pink wall")])
    texts = write_tar(tmp_path / "clips.tar", [("v.mp4", read["long.mp4"]), ("v.json", caption)])
    tale = [("t.clip0.mp4", read["one.mp4"]), ("t.clip1.mp4", read["long.mp4"])]
    story = write_tar(tmp_path / "story.tar", [*tale, ("t.json", json.dumps({"story": STORY}).encode())])
    videos = [{"video": name, "caption": name} for name in ("long.mp4", "short.mp4", "one.mp4")]
    asked = [{"video": "long.mp4", "conversations": TURNS}, {"image": "still.jpg", "conversations": TURNS}]
    told = [{"videos": ["one.mp4", "short.mp4"], "story": STORY}]
    root = {"media_root": str(media)}
    return {
        "video caption": SourceConfig(
            write_jsonl(tmp_path / "c.jsonl", videos), 4.0, {"caption": 1.0}, max_clips=5, **root
        ),
        "text to clip": SourceConfig(str(texts), 3.0, {"generate": 1.0}),
        "image": SourceConfig(str(images), 1.0, {"caption": 1.0, "generate": 1.0}),
        "question-answer": SourceConfig(
            write_jsonl(tmp_path / "q.jsonl", asked), 2.0, {"conversation": 1.0}, "instruction", max_clips=5, **root
        ),
        "story": SourceConfig(str(story), 1.0, {"story": 1.0}, "instruction"),
        "story by path": SourceConfig(write_jsonl(tmp_path / "s.jsonl", told), 1.0, {"story": 1.0}, **root),
    }


def kind_of(segments):
    """Name the source that a sample of the mixture must have come from."""
    clips = [segment for segment in segments if isinstance(segment, Clips)]
    if clips[0].kind == "image" and len(segments) == 2:
        return "image"
    if len(clips) == 2:
        return "story" if "[INST]" in segments[0].text else "story by path"
    if len(segments) > 2:
        return "question-answer"
    return "text to clip" if isinstance(segments[0], Text) else "video caption"


def test_a_weighted_mixture_of_all_kinds_gives_batches_whose_clips_fit_their_segments(sources):
    clip = ClipConfig(16, 16, sparse_frames=5)
    data = VideoTextData(list(sources.values()), batch_size=12, clip=clip, template="pretraining")
    data.setup("fit")
    counts = dict.fromkeys(sources, 0)
    for batch in islice(data.train_dataloader(), 25):
        segments = [segment for sample in batch["segments"] for segment in sample]
        clips = sum(segment.count for segment in segments if isinstance(segment, Clips))
        assert batch["video"].shape == (clips, 5, 3, 16, 16)
        assert batch["video"].dtype == torch.uint8
        for sample in batch["segments"]:
            counts[kind_of(sample)] += 1
    for name, source in sources.items():
        assert counts[name] / 300 == pytest.approx(source.weight / 12, abs=0.01)
    assert data.skipped["train"].all() == []


def test_each_kind_has_the_form_that_the_paper_trains_on(sources):
    def samples(name):
        data = VideoTextData([sources[name]], batch_size=3, clip=ClipConfig(16, 16))
        data.setup("fit")
        return [sample for batch in islice(data.train_dataloader(), 4) for sample in batch["segments"]]

    read = {segments[0].count: segments[1] for segments in samples("video caption")}
    assert read == {5: Text("long.mp4", True), 2: Text("short.mp4", True), 1: Text("one.mp4", True)}
    assert all(segments[-1] == Clips(1, "generate") for segments in samples("text to clip"))
    assert {segments[1] for segments in samples("question-answer")} == {Clips(5, "read"), Clips(1, "read", "image")}
    assert all([s.text for s in segments if isinstance(s, Text) and s.learn] == ["numbers", "all"]
               for segments in samples("question-answer"))  # fmt: skip
    for name in ("story", "story by path"):
        for segments in samples(name):
            told = [s.text if isinstance(s, Text) else s.role for s in segments]
            assert told[1:] == ["up", "generate", "down", "generate"]
