import os
import socket
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from divot_datamodules.decoding.clip_sampling import ClipConfig, clip_times, decode_clips
from divot_datamodules.decoding.video import DecodeError, check_media, decode_frames, decode_image, probe

X264 = {"crf": "8", "g": "12"}
VP8 = {"g": "12", "crf": "8", "b:v": "2M", "deadline": "realtime"}
READERS = (decode_image, probe, check_media, lambda media: decode_frames(media, [0.0]))


@pytest.mark.parametrize("excess", [0.0, 0.02, 0.06, 0.2, 1.5, 9.0])
@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [
        ("libx264", "matroska", X264),
        ("libvpx", "webm", VP8),
        ("libx264", "mp4", X264),
        ("libx264", "mov", X264),
        ("libx264", "flv", X264),
        ("libx264", "mpegts", X264),
    ],
)
def test_sound_that_lasts_longer_changes_no_length(codec, container, options, excess, coded_file):
    data = coded_file(codec, container, options, count=60, sound=60 / 25 + excess)
    assert probe(data).duration == pytest.approx(60 / 25, abs=0.002)


def test_sound_that_lasts_longer_changes_no_length_of_an_avi(coded_file):
    # FFmpeg writes the first frame twice here, as an empty packet, which is one frame more with sound of any length.
    lengths = [probe(coded_file("mpeg4", "avi", count=60, sound=60 / 25 + more)).duration for more in (0.0, 0.2, 9.0)]
    assert lengths == [61 / 25] * 3


@pytest.mark.parametrize("muxing", [{}, {"live": "1"}, {"cues_to_front": "1", "reserve_index_space": "5000"}])
def test_webm_with_longer_sound_gives_every_clip_of_every_rule(muxing, coded_file):
    data = coded_file("libvpx", "webm", VP8, count=61, sound=4.0, muxing=muxing)
    for max_clips in range(1, 6):
        decode_clips(data, ClipConfig(frames=4, short_videos="squeeze"), np.random.default_rng(0), max_clips=max_clips)
    times = clip_times(probe(data).duration, ClipConfig(), 20)
    assert len(decode_frames(data, [moment for clip in times for moment in clip])) == 2 * 16


def test_sound_that_begins_first_changes_no_length(coded_file):
    data = coded_file("libx264", "matroska", X264, stamps=[n + 50 for n in range(40)], sound=5.0)
    assert probe(data).duration == pytest.approx(40 / 25, abs=0.002)


@pytest.mark.parametrize("movflags", ["frag_keyframe+empty_moov", "frag_keyframe+empty_moov+dash", "frag_every_frame"])
def test_fragments_are_as_long_as_their_frames(movflags, coded_file):
    data = coded_file("libx264", "mp4", X264, count=60, sound=5.0, muxing={"movflags": movflags})
    assert probe(data).duration == pytest.approx(60 / 25, abs=0.002)


CONCATENATION = b"ffconcat version 1.0\nfile private.mp4\n"
PLAYLIST = (
    b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\nprivate.ts\n#EXTINF:1.6,\n%b\n#EXT-X-ENDLIST\n"
)
DASH = b"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
mediaPresentationDuration="PT1S"
profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1"
bandwidth="1" codecs="avc1.4d401e"><BaseURL>private.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"""
SESSION = b"""v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video %d RTP/AVP 96
a=rtpmap:96 H264/90000\r\n"""


@pytest.fixture
def private_files(tmp_path, monkeypatch, coded_file):
    """Stand in a folder with files that no sample may reach."""
    monkeypatch.chdir(tmp_path)
    Path("private.mp4").write_bytes(coded_file("libx264", "mp4", X264))
    Path("private.ts").write_bytes(coded_file("libx264", "mpegts", X264))


@pytest.mark.parametrize("text", [CONCATENATION, PLAYLIST % b"private.ts", DASH], ids=["concat", "hls", "dash"])
@pytest.mark.parametrize("suffix", ["mp4", "jpg", "mkv", "ffconcat", "m3u8"])
@pytest.mark.usefixtures("private_files")
def test_a_sample_leads_to_no_other_file(text, suffix):
    path = Path(f"sample.{suffix}")
    path.write_bytes(text)
    for media in (text, path, path.absolute(), str(path)):
        for read in READERS:
            with pytest.raises(DecodeError, match="undecodable"):
                read(media)


def test_a_sample_leads_to_no_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        playlist = PLAYLIST % b"http://127.0.0.1:%d/x.ts" % server.getsockname()[1]
        for text in (playlist, b"ffconcat version 1.0\nfile http://127.0.0.1:%d/x.mp4\n" % server.getsockname()[1]):
            for read in READERS:
                with pytest.raises(DecodeError, match="undecodable"):
                    read(text)
        with pytest.raises(BlockingIOError):
            server.accept()


def udp_ports():
    """Return the UDP ports that are bound on this machine."""
    lines = Path("/proc/self/net/udp").read_text().splitlines()[1:]
    return {int(line.split()[1].split(":")[1], 16) for line in lines}


def test_a_session_description_binds_no_port_and_keeps_nobody_waiting(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port = probe_socket.getsockname()[1] & ~1  # RTP takes an even port and the one above
    path = tmp_path / "a.mp4"
    path.write_bytes(SESSION % port)
    seen, errors = set(), []

    def read():
        for media in (SESSION % port, path):
            try:
                decode_frames(media, [0.0])
            except DecodeError as error:
                errors.append(error.reason)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    end = time.monotonic() + 8  # FFmpeg waits 10 seconds and more for packets
    while reader.is_alive() and time.monotonic() < end:
        seen |= udp_ports()
        time.sleep(0.001)
    assert errors == ["undecodable", "undecodable"]
    assert not seen & {port, port + 1}


@pytest.mark.parametrize(
    "name", ["Interview: part 1.mp4", "clip:1.mp4", "http:/127.0.0.1:9/x.mp4", "file:x.mp4", "-", "a%03d.mp4", "*.mp4"]
)
def test_names_are_names_of_files_whatever_they_look_like(name, tmp_path, monkeypatch, coded_file):
    monkeypatch.chdir(tmp_path)
    data = coded_file("libx264", "mp4", X264, count=8)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(data)
    for path in (Path(name), name, Path(name).absolute()):
        assert np.array_equal(decode_frames(path, [0.1]), decode_frames(data, [0.1]))


def test_a_name_with_a_pattern_in_it_is_that_picture_and_no_series(tmp_path, picture_file):
    (tmp_path / "a%03d.jpg").write_bytes(picture_file((250, 0, 0)))
    (tmp_path / "a001.jpg").write_bytes(picture_file((0, 0, 250)))
    assert decode_image(tmp_path / "a%03d.jpg")[0].mean() > 200


@pytest.mark.parametrize("name", ["nowhere.mp4", "folder", "pipe", "zero\0byte.mp4", "x" * 300])
def test_what_is_no_file_is_missing(name, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for read in READERS:
        with pytest.raises(DecodeError, match="missing_media"):
            read(tmp_path / name)


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'


@pytest.fixture
def without_decoder(coded_file, tmp_path):
    """Files whose video FFmpeg knows no decoder for."""
    mp4 = coded_file("libx264", "mp4", X264, count=8).replace(b"avc1", b"zzzz")
    mkv = coded_file("libx264", "matroska", X264, count=8).replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ")
    avi = coded_file("mpeg4", "avi", {"qscale": "2"}, count=8).replace(b"FMP4", b"ZZZZ")
    files = {"unknown.mp4": mp4, "unknown.mkv": mkv, "unknown.avi": avi, "drawing.png": SVG}
    for name, data in files.items():
        (tmp_path / "odd").mkdir(exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(data)
    return sorted((tmp_path / "odd").iterdir())


def test_a_video_without_a_decoder_has_a_reason(without_decoder):
    for path in without_decoder:
        for media in (path, path.read_bytes()):
            for read in READERS:
                with pytest.raises(DecodeError, match="undecodable"):
                    read(media)


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("libx264", "mp4"),
        ("libx264", "matroska"),
        ("libvpx", "webm"),
        ("mpeg4", "avi"),
        ("libx264", "flv"),
        ("libx264", "mpegts"),
    ],
)
def test_damage_anywhere_is_a_reason_and_never_an_error_of_another_type(codec, container, coded_file):
    data = coded_file(codec, container, VP8 if codec == "libvpx" else X264 if codec == "libx264" else {}, count=12)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        broken = bytearray(data)
        for offset in rng.integers(0, min(len(data), 3000), 12):
            broken[offset] = rng.integers(256)
        for read in READERS:
            try:
                read(bytes(broken))
            except DecodeError:
                refused += 1
    assert refused > 20


def test_a_cover_picture_is_not_the_video(coded_file, tmp_path, picture_file):
    cover, clip = tmp_path / "cover.jpg", tmp_path / "clip.mp4"
    cover.write_bytes(picture_file(size=(64, 64)))
    with av.open(str(clip), "w") as output:
        source = av.open(str(cover))
        first = output.add_stream_from_template(source.streams.video[0])
        first.disposition = av.stream.Disposition.attached_pic
        second = output.add_stream("libx264", rate=10, options=X264)
        second.width, second.height, second.pix_fmt = 32, 32, "yuv420p"
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = first
                output.mux(packet)
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            output.mux(second.encode(frame))
        output.mux(second.encode(None))
        source.close()
    assert (probe(clip).codec, decode_frames(clip, [0.55]).shape) == ("h264", (1, 3, 32, 32))
