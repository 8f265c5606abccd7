"""Find the frame that is shown at a given time, and decode as little as possible for it."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from divot_datamodules.decoding.media_files import DecodeError, OpenVideo

_INDEXED = ("mov", "matroska", "avi")
"""Containers with a reliable index; others are decoded from their start."""


_CUT_OFF = 1.0
"""Seconds by which a file may be shorter than its header says; headers of good files are not exact."""


def keyframe_times(video: OpenVideo) -> list[float]:
    """Return the times of the keyframes in the container's index, ascending, in seconds.

    They only serve to decode no more than needed. An mp4's index has decoding times, which are earlier than
    presentation times by the same amount for every keyframe. If that is not so in a file, a seek lands on the
    keyframe before.
    """
    if video.kind not in _INDEXED:
        return []
    stream, entries = video.stream, video.stream.index_entries
    start = min((stream.start_time or 0, *(entry.timestamp for entry in list(entries)[:1])))
    return sorted(float((entry.timestamp - start) * stream.time_base) for entry in entries if entry.is_keyframe)


def shown_frames(video: OpenVideo, times: Sequence[float], keyframes: Sequence[float]) -> Iterator[Any]:
    """Yield, for each of the ascending times, the decoded frame that is shown then.

    Decoding begins at the last keyframe before the first time, and seeks again at a keyframe between two times.

    Args:
        video: An open video at its start.
        times: Seconds after the first picture.
        keyframes: See `keyframe_times`; [] decodes everything from the start.

    Raises:
        DecodeError: "too_short" or "corrupt".
    """
    container, stream, fps, start = video.container, video.stream, video.fps, video.start
    slack, delay = _slack(video), _decoding_delay(video)
    frames: Iterator[Any] = iter(())
    shown: Any = None
    upcoming: Any = None
    sought = False
    position = -float("inf")
    for time in times:
        index = bisect_right(keyframes, time + slack)
        key = keyframes[index - 1] if index else 0.0
        if shown is None or key > position + 1e-6:
            sought = key > 0.0
            if sought:
                container.seek(int((time + start + slack) / stream.time_base), stream=stream)
            frames, shown, upcoming = _decoded(video, [time + slack for time in times], delay), None, None
        while upcoming is None or upcoming.time - start <= time + slack:
            shown, upcoming = upcoming or shown, next(frames, None)
            if upcoming is None:
                break
        if shown is None and upcoming is not None:
            if sought:
                raise DecodeError("corrupt", f"the index leads behind {time:.3f} s")
            shown = upcoming  # the first frame of all stands for the moments before its time stamp
        if shown is None or (upcoming is None and not _lasts_until(shown, time, start, fps, slack)):
            raise DecodeError("too_short", f"no frame at {time:.3f} s")
        _refuse_corrupt(shown, start)
        position = shown.time - start
        yield shown


def _refuse_corrupt(frame: Any, start: float) -> None:
    if frame.is_corrupt:
        raise DecodeError("corrupt", f"the frame at {frame.time - start:.3f} s")


def _decoded(video: OpenVideo, ends: Sequence[float] | None, delay: int) -> Iterator[Any]:
    """Yield frames with their time stamps.

    An mp4's packets contain both decoding and presentation times. Other containers may lack one; FFmpeg guesses it.

    Args:
        video: An open video, positioned at the first packet to decode.
        ends: The requested times in seconds, ascending; the frame shown at a time is the last one before it. None for
            all frames.
        delay: See `_decoding_delay`.
    """
    if video.kind == "mov" and ends is not None:
        frames = _needed(video, ends)
    elif video.kind == "avi":
        frames = _stamped_in_order(video, delay)
    else:
        frames = video.container.decode(video.stream)
    for frame in frames:
        if frame.pts is None:
            raise DecodeError("corrupt", "a frame without a time stamp")
        yield frame


def _needed(video: OpenVideo, ends: Sequence[float]) -> Iterator[Any]:
    """Yield frames, without those that are shown at no requested time and that no other frame refers to."""
    stream, start, base = video.stream, video.start, float(video.stream.time_base)
    for packet, successor in _with_successors(video.container.demux(stream)):
        unused = False
        if successor is not None:
            index = bisect_left(ends, packet.pts * base - start)
            unused = index == len(ends) or ends[index] >= successor * base - start
        stream.codec_context.skip_frame = "NONREF" if unused else "DEFAULT"
        yield from packet.decode()


def _with_successors(packets: Iterable[Any]) -> Iterator[tuple[Any, int | None]]:
    """Yield packets with the time stamp of the frame that is shown next; None if that is unknown."""
    held: deque[Any] = deque()
    stamps: list[int] = []
    for packet in packets:
        held.append(packet)
        if packet.pts is None or packet.dts is None:
            yield from ((packet, None) for packet in held)
            held.clear()
            continue
        insort(stamps, packet.pts)
        while held:
            index = bisect_right(stamps, held[0].pts)
            # A packet is shown after it is decoded, so packets still to come are shown after the dts of this one.
            if index == len(stamps) or stamps[index] > packet.dts:
                break
            yield held.popleft(), stamps[index]
    yield from ((packet, None) for packet in held)


def _decoding_delay(video: OpenVideo) -> int:
    """Return the delay of an avi's decoder in time stamps, from packet in to frame out; 0 for other containers.

    An avi stores no presentation times, and FFmpeg's guesses are wrong for frames that are stored in another order. But
    the decoder returns frames in presentation order, one for each packet. So a frame's time is the time of the packet
    that brought it out, minus the delay of the first frame.
    """
    if video.kind != "avi":
        return 0
    first = next(_stamped_in_order(video, 0), None)
    video.container.seek(0)
    return 0 if first is None else int(first.pts - (video.stream.start_time or 0))


def _stamped_in_order(video: OpenVideo, delay: int) -> Iterator[Any]:
    """Yield an avi's frames, each with its presentation time."""
    stamp = (video.stream.start_time or 0) - 1
    for packet in video.container.demux(video.stream):
        # The empty packet at the end brings out the last frames together. In an avi, one time stamp is one frame.
        stamp = packet.dts if packet.dts is not None else stamp + 1
        for number, frame in enumerate(packet.decode()):
            frame.pts = stamp + number - delay
            yield frame


def check_every_frame(video: OpenVideo) -> None:
    """Decode all frames of a video.

    Args:
        video: An open video at its start.

    Raises:
        DecodeError: A frame is damaged, or the frames or the file end before they should.
    """
    end, frame = max(0.0, video.timing().duration - 1.0 / video.fps), None
    for frame in _decoded(video, None, _decoding_delay(video)):
        _refuse_corrupt(frame, video.start)
    if frame is None:
        raise DecodeError("undecodable", "no frame in it")
    if not _lasts_until(frame, end, video.start, video.fps, _slack(video)):
        raise DecodeError("too_short", f"the frames end before {end:.3f} s")
    last, promised = _file_ends(video, frame)
    if last < promised - _CUT_OFF:
        raise DecodeError("too_short", f"the file ends at {last:.3f} s of {promised:.3f} s")


def _file_ends(video: OpenVideo, last_frame: Any) -> tuple[float, float]:
    """Return the end of the file and the end in its header, in seconds; (0, 0) if `timing` is the header's already.

    For a truncated avi, FFmpeg already reports a shorter length; and the timing of mkv, webm and flv is from packets.
    """
    stream, container = video.stream, video.container
    if video.kind == "avi":
        return last_frame.time - video.start, (stream.frames - 1) * float(stream.time_base)
    if video.kind not in ("matroska", "flv") or not container.duration:
        return 0.0, 0.0
    container.seek(0)
    packets = (packet for packet in container.demux() if packet.pts is not None)
    last = max((float((packet.pts + (packet.duration or 0)) * packet.time_base) for packet in packets), default=0.0)
    return last, container.duration / 1e6  # FFmpeg counts it in microseconds


def _slack(video: OpenVideo) -> float:
    """Return the tolerance in seconds by which a frame may start after a requested time: containers round time stamps.

    An mkv rounds to 1 ms, a gif to 10 ms; an avi counts frames and rounds nothing.
    """
    return 1e-6 + (0.0 if video.kind == "avi" else min(0.75 * float(video.stream.time_base), 0.25 / video.fps))


def _lasts_until(frame: Any, time: float, start: float, fps: float, slack: float) -> bool:
    length = float(frame.duration * frame.time_base) if frame.duration else 1.0 / fps
    return bool(time < frame.time - start + length + slack)
