"""An mp4 is opened by its index alone; everything that is known then is as if FFmpeg had decoded its first frames."""

import io
import struct

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from divot_datamodules.decoding import media_files
from divot_datamodules.decoding.video import DecodeError, decode_frames, probe

UNEVEN = [0, 3, 4, 20, 21, 30, *(60 + 4 * n for n in range(34))]
B_FRAMES = {"g": "12", "bf": "2", "b_strategy": "0"}


def decoding_first(monkeypatch):
    monkeypatch.setattr(media_files, "_BY_ITS_INDEX", {})


def same_after_decoding_first(data, monkeypatch):
    timing = probe(data)
    times = np.linspace(0.0, timing.duration - 0.03, 9).tolist()
    frames = decode_frames(data, times)
    decoding_first(monkeypatch)
    assert probe(data) == timing
    np.testing.assert_array_equal(decode_frames(data, times), frames)


@pytest.mark.parametrize("stamps", [None, UNEVEN, [n + 17 for n in range(40)]])
@pytest.mark.parametrize("sound", [0.0, 5.0])
@pytest.mark.parametrize(
    "muxing",
    [
        {},
        {"use_editlist": "0"},
        {"movflags": "negative_cts_offsets", "use_editlist": "0"},
        {"movflags": "frag_keyframe+empty_moov"},
    ],
)
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_length_rate_and_shown_frames_are_those_after_decoding_first(
    container, stamps, sound, muxing, coded_file, monkeypatch
):
    data = coded_file("libx264", container, B_FRAMES, stamps=stamps, sound=sound, muxing=muxing)
    same_after_decoding_first(data, monkeypatch)


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx265", {"bf": "2", "x265-params": "log-level=none"}),
        ("mpeg4", {"bf": "2"}),
        ("libvpx-vp9", {"deadline": "realtime"}),
        ("libsvtav1", {"preset": "12"}),
    ],
)
def test_so_are_those_of_other_codecs(codec, options, coded_file, monkeypatch):
    same_after_decoding_first(coded_file(codec, "mp4", options, stamps=UNEVEN), monkeypatch)


@pytest.mark.parametrize(
    ("muxing", "decoded"), [({}, False), ({"movflags": "frag_keyframe+empty_moov"}, True)], ids=["whole", "fragments"]
)
def test_only_an_mp4_without_an_index_is_decoded_to_open_it(muxing, decoded, coded_file, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(coded_file("libx264", "mp4", B_FRAMES, muxing=muxing))
    for media in (path, path.read_bytes()):
        with media_files.opened(media, media_files.MAX_PIXELS) as video:
            # The format of pixels is known as soon as a frame is decoded.
            assert (video.stream.codec_context.pix_fmt is not None) == decoded


def with_pixel_aspect_of_stream(data, aspect):
    """The same mp4, with the shape of pixels in the coded pictures and not in the header."""
    changed = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(changed, "w", format="mp4") as output:
        stream = source.streams.video[0]
        copied = output.add_stream_from_template(stream)
        filtering = BitStreamFilterContext(f"h264_metadata=sample_aspect_ratio={aspect}", stream, copied)
        for packet in source.demux(stream):
            for filtered in filtering.filter(None if packet.dts is None else packet):
                filtered.stream = copied
                output.mux(filtered)
    return changed.getvalue()


def test_the_shape_of_pixels_is_read_where_only_the_pictures_tell_it(coded_file):
    data = with_pixel_aspect_of_stream(coded_file("libx264", "mp4", B_FRAMES), "2/1")
    assert b"pasp" not in data
    assert (probe(data).height, probe(data).width) == (64, 128)
    assert decode_frames(data, [0.5]).shape == (1, 3, 64, 128)


def test_pictures_larger_than_their_header_says_are_not_decoded(coded_file):
    data = bytearray(coded_file("libx264", "mp4", B_FRAMES))
    entry = data.index(b"avc1", data.index(b"stsd"))
    assert struct.unpack(">HH", data[entry + 28 : entry + 32]) == (64, 64)
    data[entry + 28 : entry + 32] = struct.pack(">HH", 16, 16)
    assert decode_frames(bytes(data), [0.5], max_pixels=64 * 64).shape == (1, 3, 64, 64)
    with pytest.raises(DecodeError, match="corrupt"):
        decode_frames(bytes(data), [0.5], max_pixels=16 * 16)
