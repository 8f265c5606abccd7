import io
import pickle
import random
from pathlib import Path

import av
import numpy as np
import pytest

from divot_datamodules.decoding import media_files, shown_frames
from divot_datamodules.decoding import video as decoding
from divot_datamodules.decoding.media_files import OpenVideo
from divot_datamodules.decoding.video import DecodeError, VideoTiming, decode_frames, decode_image, probe
from divot_datamodules.decoding.video_writing import encode_video

REAL_VIDEOS = Path(__file__).parents[3] / "shared" / "videos"
CONTAINERS = ["mp4", "mkv", "webm", "avi", "gif"]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("fps", [8, 12, 25, 29.97])
def test_the_frames_shown_at_the_times_come_back(container, fps, numbered_file, frame_numbers):
    data = numbered_file(70, fps, container)
    rng = random.Random(0)
    for _ in range(3):
        chosen = sorted(rng.sample(range(70), 9))
        # A third into each frame's time; containers round time stamps by far less.
        times = [(number + 0.35) / fps for number in chosen]
        assert frame_numbers(decode_frames(data, times)) == chosen


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("fps", [8, 25])
def test_a_time_at_a_frames_very_beginning_means_that_frame(container, fps, numbered_file, frame_numbers):
    data = numbered_file(40, fps, container)
    assert frame_numbers(decode_frames(data, [n / fps for n in range(40)])) == list(range(40))


GROUPS = {"crf": "4", "g": "10", "keyint_min": "10", "bf": "2", "sc_threshold": "0"}


def grouped_file(numbered_video, container="mp4"):
    """100 frames at 10 per second, a keyframe at each second, with B-frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=10, options=GROUPS)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        for pixels in numbered_video(100):
            picture = np.ascontiguousarray(pixels.transpose(1, 2, 0))
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


GROUPED_TIMES = ([7.25], [0.0, 0.55, 6.65, 9.95], [3.05, 3.15, 3.25], [2.95, 3.05], [5.0, 9.0], [4.99])


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("times", GROUPED_TIMES)
def test_frames_behind_other_keyframes_are_the_same_as_when_all_is_decoded(
    container, times, numbered_video, frame_numbers, monkeypatch
):
    data = grouped_file(numbered_video, container)
    found = frame_numbers(decode_frames(data, times))
    monkeypatch.setattr(decoding, "keyframe_times", lambda video: [])
    assert found == frame_numbers(decode_frames(data, times)) == [int(time * 10 + 1e-6) for time in times]


@pytest.fixture
def decoded_frames(monkeypatch):
    """The time stamps of all frames that the decoder gives."""
    stamps, real = [], shown_frames._decoded

    def noted(*arguments):
        for frame in real(*arguments):
            stamps.append(frame.pts)
            yield frame

    monkeypatch.setattr(shown_frames, "_decoded", noted)
    return stamps


@pytest.mark.parametrize("times", GROUPED_TIMES)
def test_decoding_starts_at_the_last_keyframe_before_a_frame(times, numbered_video, decoded_frames):
    with media_files.opened(grouped_file(numbered_video), decoding.MAX_PIXELS) as video:
        keys = shown_frames.keyframe_times(video)
        assert keys == pytest.approx(list(range(10)))
        list(shown_frames.shown_frames(video, times, keys))
    numbers = [int(time * 10 + 1e-6) for time in times]
    # Of each group of ten, the frames up to the last that is shown and the one behind it, which tells how long it is.
    groups = {number // 10: number % 10 + 2 for number in numbers}
    assert 0 < len(decoded_frames) <= sum(groups.values())


@pytest.mark.parametrize("keyframe_interval", [12, 90])
def test_frames_that_nothing_needs_are_left_out_and_change_no_other(keyframe_interval, decoded_frames):
    rng = np.random.default_rng(0)
    video = np.cumsum(rng.integers(-3, 4, (90, 48, 64, 3)), axis=0).astype(np.uint8)
    options = {"bf": "3", "b_strategy": "0", "b-pyramid": "normal", "g": str(keyframe_interval)}
    data = encoded(video, options)
    with av.open(io.BytesIO(data)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    for _ in range(20):
        numbers = np.sort(rng.choice(90, size=5))
        found = decode_frames(data, [number / 30 + 0.01 for number in numbers])
        np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), whole[numbers])
    decoded_frames.clear()
    decode_frames(data, [89 / 30])
    assert len(decoded_frames) < (90 - 1) % keyframe_interval + 1


def encoded(video, options):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for frame in video:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def test_a_seek_that_lands_too_late_gives_no_wrong_frame(monkeypatch, numbered_video, frame_numbers):
    data = grouped_file(numbered_video)
    real = decoding.shown_frames

    def late(video, times, keyframes):
        if not keyframes:
            return real(video, times, keyframes)

        class Late:
            def seek(self, target, **kwargs):
                video.container.seek(target + int(3 / video.stream.time_base), **kwargs)

            def __getattr__(self, name):
                return getattr(video.container, name)

        return real(OpenVideo(Late(), video.stream), times, keyframes)

    monkeypatch.setattr(decoding, "shown_frames", late)
    assert frame_numbers(decode_frames(data, [2.5, 6.5])) == [25, 65]


def test_variable_rates_are_read_by_presentation_time(variable_rate_file, frame_numbers):
    data = variable_rate_file([0, 100, 150, 600, 1000, 1010, 2000])
    times = [0.05, 0.12, 0.2, 0.59, 0.61, 1.005, 1.5, 1.99, 2.0]
    assert frame_numbers(decode_frames(data, times)) == [0, 1, 2, 2, 3, 4, 5, 5, 6]


def test_a_time_may_come_twice(numbered_file, frame_numbers):
    assert frame_numbers(decode_frames(numbered_file(), [0.3, 0.3, 0.4])) == [2, 2, 3]


def test_paths_and_bytes_give_the_same(tmp_path, numbered_file):
    data = numbered_file()
    (tmp_path / "clip.mp4").write_bytes(data)
    assert np.array_equal(decode_frames(data, [0.5]), decode_frames(tmp_path / "clip.mp4", [0.5]))


def test_the_short_side_is_resized_and_the_middle_cut_out():
    video = np.zeros((2, 3, 40, 80), np.uint8)
    video[:, 0, :, 20:60] = 255  # the middle square is red
    data = encode_video(video, 8, crf=0)
    small = decode_frames(data, [0.0], (20, 20))
    assert small.shape == (1, 3, 20, 20)
    assert small[0, 0].min() > 200
    assert small[0, 1:].max() < 60
    assert decode_frames(data, [0.0], (20, 40))[0, 0, :, :8].max() < 60
    assert decode_frames(data, [0.0], (60, 60)).shape == (1, 3, 60, 60)


def test_shrinking_averages_what_it_drops():
    video = np.zeros((1, 3, 64, 64), np.uint8)
    video[..., ::2] = 255
    small = decode_frames(encode_video(video, 8, crf=0), [0.0], (16, 16))
    assert abs(small.mean() - 127) < 8
    assert small.std() < 12


@pytest.mark.parametrize("container", CONTAINERS)
def test_beyond_the_end_is_too_short_and_never_filled_up(container, numbered_file):
    data = numbered_file(16, 8, container)
    with pytest.raises(DecodeError, match=r"too_short.*2\.1"):
        decode_frames(data, [0.0, 2.1])


def noise_file(path, count, size=64):
    """An mp4 whose index comes first, so that a truncated file still promises all frames."""
    noise = np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=8, options={"crf": "20", "g": "16", "bf": "0"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in noise:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return path.read_bytes()


def test_a_truncated_file_that_promises_more_gives_no_short_clip(tmp_path):
    data = noise_file(tmp_path / "noise.mp4", 32)
    times = [index / 8 for index in range(32)]
    assert len(decode_frames(data, times)) == 32
    for part in (0.4, 0.6, 0.8, 0.99):
        cut = data[: int(len(data) * part)]
        assert probe(cut).num_frames == 32
        with pytest.raises(DecodeError, match=r"too_short|corrupt"):
            decode_frames(cut, times)


def test_damaged_frames_are_refused(tmp_path):
    data = bytearray(noise_file(tmp_path / "noise.mp4", 16))
    middle = len(data) // 2
    data[middle : middle + 4000] = np.random.default_rng(1).bytes(4000)
    with pytest.raises(DecodeError, match="corrupt"):
        decode_frames(bytes(data), [index / 8 for index in range(16)])


def test_a_stream_that_decodes_only_from_its_start_is_read_from_there(monkeypatch, numbered_file, frame_numbers):
    real, calls = decoding._decode, []

    def corrupt_after_a_seek(*args, seek):
        calls.append(seek)
        if seek:
            raise DecodeError("corrupt")
        return real(*args, seek=seek)

    monkeypatch.setattr(decoding, "_decode", corrupt_after_a_seek)
    assert frame_numbers(decode_frames(numbered_file(), [1.0])) == [8]
    assert calls == [True, False]


def test_seeking_changes_no_frame_of_real_videos(tmp_path, monkeypatch):
    noise_file(tmp_path / "noise.mp4", 64)
    for path in [tmp_path / "noise.mp4", *sorted(REAL_VIDEOS.glob("*.mp4"))]:
        end = probe(path).duration
        times = [end * 0.6, end * 0.62, end * 0.9]
        with_seeks = decode_frames(path, times, (32, 32))
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "keyframe_times", lambda video: [])
            assert np.array_equal(with_seeks, decode_frames(path, times, (32, 32))), path.name


def test_the_moments_may_depend_on_the_header_and_are_chosen_once(numbered_file, frame_numbers):
    seen = []

    def choose(timing):
        seen.append(timing)
        return [timing.duration / 2]

    data = numbered_file(40, 10)
    assert frame_numbers(decode_frames(data, choose)) == [20]
    info = probe(data)
    assert seen == [VideoTiming(info.duration, info.fps, info.num_frames, info.codec)]


def test_a_file_without_its_index_is_undecodable(numbered_file):
    data = numbered_file()
    with pytest.raises(DecodeError, match="undecodable"):
        decode_frames(data[: len(data) // 2], [0.0])


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty_media"), (b"no video at all " * 99, "undecodable"), (b"\0" * 999, "undecodable")]
)
def test_rubbish_has_a_reason(data, reason):
    with pytest.raises(DecodeError, match=reason) as caught:
        decode_frames(data, [0.0])
    assert caught.value.reason == reason


def test_sound_alone_is_no_video():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(DecodeError, match="no_video_stream"):
        probe(buffer.getvalue())


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(DecodeError("too_short", "1 s of 2 s")))
    assert (error.reason, str(error)) == ("too_short", "too_short: 1 s of 2 s")


def test_descending_times_are_our_own_mistake(numbered_file):
    with pytest.raises(ValueError, match=r"ascend.*0\.5, 0\.1"):
        decode_frames(numbered_file(), [0.5, 0.1])


@pytest.mark.parametrize("container", CONTAINERS)
def test_headers_tell_length_and_rate(container, numbered_file):
    info = probe(numbered_file(50, 25, container))
    assert (info.height, info.width) == (32, 32)
    assert info.duration == pytest.approx(2.0, abs=0.011)
    assert info.fps == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_decode(kind, picture_file):
    picture = decode_image(picture_file((200, 40, 90), (40, 30), kind), (16, 16))
    assert picture.shape == (3, 16, 16)
    assert np.abs(picture.mean(axis=(1, 2)) - [200, 40, 90]).max() < 5


HUGE = 4096


def huge_file(path):
    """One black frame of 16 million pixels in a small file; the suffix decides the codec."""
    if path.suffix in (".png", ".jpg", ".webp"):
        from PIL import Image

        Image.new("RGB", (HUGE, HUGE)).save(path)
        return path
    codec, options = {".mp4": ("libx264", {"preset": "ultrafast"}), ".webm": ("libvpx", {"deadline": "realtime"})}[
        path.suffix
    ]
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=8, options=options)
        stream.width = stream.height = HUGE
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame(HUGE, HUGE, "yuv420p")))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mp4", "webm", "png", "jpg", "webp"])
def test_pictures_over_the_limit_are_refused_before_they_are_decoded(suffix, tmp_path, monkeypatch):
    path = huge_file(tmp_path / f"huge.{suffix}")
    monkeypatch.setattr(decoding, "FrameConverter", None)  # nothing comes as far as pixels
    for media in (path, path.read_bytes()):
        for read in (decode_image, probe, lambda media, **limit: decode_frames(media, [0.0], **limit)):
            with pytest.raises(DecodeError, match=rf"too_large: {HUGE} x {HUGE} pixels, more than 1000000"):
                read(media, max_pixels=1_000_000)


def test_a_missing_and_an_empty_file_have_their_reasons(tmp_path):
    with pytest.raises(DecodeError, match=r"missing_media: .*nowhere\.mp4"):
        decode_frames(tmp_path / "nowhere.mp4", [0.0])
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DecodeError, match="empty_media"):
        decode_frames(tmp_path / "empty.mp4", [0.0])


def test_every_file_is_closed_whether_it_decodes_or_not(tmp_path, numbered_file):
    (tmp_path / "good.mp4").write_bytes(numbered_file())
    (tmp_path / "bad.mp4").write_bytes(numbered_file()[:500])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        decode_frames(tmp_path / "good.mp4", [0.0])
        for broken in ("good.mp4", "bad.mp4"):
            with pytest.raises(DecodeError):
                decode_frames(tmp_path / broken, [99.0])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("times", [[], [0.5, 0.1]])
def test_no_times_and_descending_ones_are_refused(times):
    with pytest.raises(ValueError, match="at least one and ascend"):
        decode_frames(encode_video(np.zeros((8, 3, 16, 16), np.uint8), 8), times)
