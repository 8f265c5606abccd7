"""The frames that are asked for, against all frames of a file decoded one after the other."""

import io
import struct

import av
import numpy as np
import pytest

from divot_datamodules.decoding import shown_frames
from divot_datamodules.decoding.video import DecodeError, check_media, decode_frames, probe

COUNT = 40
CLOSED = {"crf": "4", "g": "10", "keyint_min": "10", "bf": "2", "sc_threshold": "0", "b_strategy": "0"}
OPEN = {**CLOSED, "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"}
INTRA = {"crf": "4", "g": "1"}
OLD = {"g": "12", "bf": "2", "qscale": "2"}
H265 = {"crf": "8", "x265-params": "keyint=10:bframes=3:open-gop=1:log-level=none"}
VP8 = {"g": "10", "crf": "4", "b:v": "2M", "deadline": "realtime"}
VP9 = {"g": "10", "crf": "4", "b:v": "0", "deadline": "good", "cpu-used": "5", "lag-in-frames": "16"}
IN_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
UNEVEN = np.cumsum([0, *np.random.default_rng(5).integers(1, 9, COUNT - 1)]).tolist()
LATE = [number + 37 for number in range(COUNT)]

KINDS = {
    **{f"x264 in {name}": ("libx264", name, CLOSED) for name in ("mp4", "mov", "matroska", "avi", "flv", "mpegts")},
    **{f"open groups in {name}": ("libx264", name, OPEN) for name in ("mp4", "mov", "matroska", "avi", "mpegts")},
    **{f"keyframes only in {name}": ("libx264", name, INTRA) for name in ("mp4", "matroska", "avi")},
    **{f"mpeg4 in {name}": ("mpeg4", name, OLD) for name in ("mp4", "mov", "matroska", "avi")},
    "mpeg4 without B-frames in avi": ("mpeg4", "avi", {"g": "12", "qscale": "2"}),
    "mpeg2 in avi": ("mpeg2video", "avi", OLD),
    "h265 in mp4": ("libx265", "mp4", H265),
    "h265 in matroska": ("libx265", "matroska", H265),
    "vp8": ("libvpx", "webm", VP8),
    "vp9": ("libvpx-vp9", "webm", VP9),
    "ffv1": ("ffv1", "matroska", {}),
    "gif": ("gif", "gif", {}, {"pixel_format": "rgb8"}),
    "mjpeg in avi": ("mjpeg", "avi", {"qscale": "2"}, {"pixel_format": "yuvj420p"}),
    "prores": ("prores_ks", "mov", {}, {"pixel_format": "yuv422p10le"}),
    **{f"uneven in {name}": ("libx264", name, CLOSED, {"stamps": UNEVEN}) for name in ("mp4", "matroska", "flv")},
    **{f"late in {name}": ("libx264", name, CLOSED, {"stamps": LATE}) for name in ("mp4", "matroska", "mpegts")},
    "late behind sound": ("libx264", "matroska", CLOSED, {"stamps": LATE, "sound": 4.0}),
    "fragments": ("libx264", "mp4", CLOSED, {"muxing": IN_FRAGMENTS}),
    "fragments with an index": ("libx264", "mp4", CLOSED, {"muxing": {"movflags": "frag_keyframe+empty_moov+dash"}}),
    "without an index": ("libx264", "matroska", CLOSED, {"muxing": {"live": "1"}}),
}
KINDS = {name: (*kind, {})[:4] for name, kind in KINDS.items()}


@pytest.fixture(params=KINDS)
def any_file(request, coded_file):
    codec, container, options, more = KINDS[request.param]
    return coded_file(codec, container, options, count=COUNT, **more)


def sequence(data):
    """Return the time stamps of all frames in the order in which they are shown, from the packets.

    An avi has no times of presentation: it shows its frames one after the other at its packets' times.
    """
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        avi = container.format.name == "avi"
        stamps = np.sort([packet.dts if avi else packet.pts for packet in packets])
        return (stamps - stamps[0]) * float(stream.time_base)


def decoded_in_order(data):
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_seeking_gives_the_frames_that_decoding_all_of_a_file_gives(any_file, frame_numbers):
    stamps, whole = sequence(any_file), decoded_in_order(any_file)
    assert frame_numbers(whole.transpose(0, 3, 1, 2)) == list(range(COUNT))  # FFmpeg gives them in order
    assert len(stamps) == COUNT
    lengths = np.diff(stamps, append=stamps[-1] + 0.02)
    rounding = 4 if probe(any_file).codec == "prores" else 0  # ten bits are rounded more exactly here
    rng = np.random.default_rng(1)
    for trial in range(10):
        chosen = np.sort(rng.choice(COUNT, size=rng.integers(1, 5), replace=False))
        times = stamps[chosen] + (0.4 if trial % 2 else 0.0) * lengths[chosen]
        found = decode_frames(any_file, times.tolist()).transpose(0, 2, 3, 1)
        assert np.abs(found.astype(int) - whole[chosen]).max() <= rounding, chosen


def test_every_moment_up_to_the_length_shows_the_frame_of_its_time(any_file, frame_numbers):
    stamps, end = sequence(any_file), probe(any_file).duration
    times = np.linspace(0, end - 1e-4, 60)
    nearest = np.abs(times[:, None] - stamps).min(axis=1)
    times = times[nearest > 0.011]  # a gif or mkv rounds time stamps
    assert len(times) > 12
    wanted = np.searchsorted(stamps, times, side="right") - 1
    assert frame_numbers(decode_frames(any_file, times.tolist())) == wanted.tolist()
    check_media(any_file)


@pytest.mark.parametrize("name", ["x264 in avi", "open groups in avi", "mpeg4 in avi", "mpeg2 in avi"])
def test_an_avi_is_sampled_evenly(name, coded_file, frame_numbers):
    codec, container, options, _ = KINDS[name]
    data = coded_file(codec, container, options, count=30, rate=30)
    assert frame_numbers(decode_frames(data, [index / 8 for index in range(8)])) == [0, 3, 7, 11, 15, 18, 22, 26]


def test_a_frame_that_an_avi_repeats_is_shown_twice(coded_file, frame_numbers):
    data = coded_file("mpeg4", "avi", {"g": "10", "qscale": "2"}, count=COUNT, sound=1.6)  # FFmpeg repeats the first
    times = [(number + 0.3) / 25 for number in range(COUNT + 1)]
    assert frame_numbers(decode_frames(data, times)) == [0, *range(COUNT)]
    assert frame_numbers(decode_frames(data, times[35:])) == list(range(34, COUNT))


@pytest.mark.parametrize("part", [0.4, 0.7])
@pytest.mark.parametrize("name", ["x264 in avi", "mpeg4 in avi", "mjpeg in avi"])
def test_an_avi_that_was_cut_off_with_its_index_gives_what_it_has(name, part, coded_file, frame_numbers):
    codec, container, options, more = KINDS[name]
    data = coded_file(codec, container, options, count=COUNT, rate=5, **more)
    check_media(data)
    cut = data[: 6000 + round(part * (len(data) - 6000))]
    assert frame_numbers(decode_frames(cut, [n / 5 for n in (0, 1, 4, 6)])) == [0, 1, 4, 6]
    with pytest.raises(DecodeError, match=r"too_short|corrupt"):
        check_media(cut)


def test_an_avi_is_decoded_from_the_last_keyframe_on(coded_file, monkeypatch, frame_numbers):
    data = coded_file("mpeg4", "avi", {"g": "10", "qscale": "2"}, count=COUNT)
    decoded, real = [], shown_frames._stamped_in_order

    def noted(video, delay):
        for frame in real(video, delay):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(shown_frames, "_stamped_in_order", noted)
    assert frame_numbers(decode_frames(data, [35 / 25])) == [35]
    assert decoded[0] == 0  # the first tells by how much the decoder runs ahead
    assert decoded[1:] == list(range(decoded[1], 37))
    assert 30 <= decoded[1] <= 35


def with_edit(data, media_time, duration):
    """Rewrite an mp4's only edit: from which moment on its media are shown and how long, in its two time scales."""
    offset = data.index(b"elst")
    assert struct.unpack(">I", data[offset + 8 : offset + 12]) == (1,)
    entry = offset + 12
    return data[:entry] + struct.pack(">Ii", duration, media_time) + data[entry + 8 :]


def test_an_edit_list_decides_what_is_the_first_frame_and_how_long_the_video_is(coded_file, frame_numbers):
    data = coded_file("libx264", "mp4", CLOSED, count=COUNT)
    with av.open(io.BytesIO(data)) as container:
        tick = round(1 / 25 / float(container.streams.video[0].time_base))
    # Frame 0 is shown at two ticks of the media's clock, since frames are decoded ahead of it.
    cut = with_edit(data, (2 + 13) * tick, 20 * 1000 // 25)
    assert probe(cut).duration == pytest.approx(20 / 25, abs=0.002)
    assert frame_numbers(decode_frames(cut, [(n + 0.3) / 25 for n in range(20)])) == list(range(13, 33))
    assert frame_numbers(decode_frames(cut, [18.3 / 25])) == [31]


def index_first(data, path):
    """Rewrite an mp4 so that its index stands before the frames and a truncated file still promises all of them."""
    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_check_of_all_frames_finds_damage_in_the_middle_and_a_missing_end(container, coded_file, tmp_path):
    data = coded_file("libx264", container, {"crf": "1", "g": "8", "bf": "0"}, count=COUNT)
    if container == "mp4":
        data = index_first(data, tmp_path / "first.mp4")
    check_media(data)
    with av.open(io.BytesIO(data)) as opened:
        packets = [(packet.pos, packet.size) for packet in opened.demux(video=0) if packet.size]
    offset, size = max(packets[20:30], key=lambda packet: packet[1])
    damaged = bytearray(data)
    damaged[offset + 20 : offset + size - 20] = np.random.default_rng(0).bytes(size - 40)
    assert decode_frames(bytes(damaged), [0.0]).shape[0] == 1  # its beginning does not tell
    with pytest.raises(DecodeError, match="corrupt"):
        check_media(bytes(damaged))
    with pytest.raises(DecodeError, match=r"too_short|corrupt"):
        check_media(data[: packets[10][0]])
