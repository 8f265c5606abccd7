"""Pixels as a player shows them: colours, orientation, shape of pixels; against numpy, Pillow and the standards."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from divot_datamodules.decoding import frame_pixels
from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clip
from divot_datamodules.decoding.video import DecodeError, decode_frames, decode_image, probe
from divot_datamodules.decoding.video_writing import encode_video


def picture(height=48, width=64):
    """A picture whose every turn and flip differs: other colours in the corners, smooth in between."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255.0 * x / (width - 1), 255.0 * y / (height - 1)
    return np.stack([red, green, 255.0 * (x < width // 3) * (y < height // 2)], axis=2).astype(np.uint8)


def plain_mp4(pixels, pixel_aspect=None, count=3):
    if pixel_aspect is None:
        return encode_video(np.stack([pixels.transpose(2, 0, 1)] * count), 8, crf=0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=8, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv444p"
        stream.sample_aspect_ratio = pixel_aspect
        for _ in range(count):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def with_matrix(data, a, b, c, d):
    """Rewrite the matrix in an mp4's track header (ISO/IEC 14496-12, section 8.3.2): 16.16 fixed point."""
    offset = data.index(b"tkhd") + 44
    one, unit = 1 << 16, 1 << 30
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, unit)
    return data[:offset] + matrix + data[offset + 36 :]


# x' = a x + c y, y' = b x + d y with y downwards: a quarter turn clockwise takes right to down and down to left.
TURNS = {
    "upright": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "upside down": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "counterclockwise": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transposed over the other corners": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_video_is_turned_as_its_display_matrix_says(name):
    matrix, turn = TURNS[name]
    data = plain_mp4(picture())
    shown = turn(decode_frames(data, [0.0])[0].transpose(1, 2, 0))
    turned = with_matrix(data, *matrix)
    found = decode_frames(turned, [0.0, 0.3])
    assert np.array_equal(found[0].transpose(1, 2, 0), shown)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(decode_image(turned).transpose(1, 2, 0), shown)
    info = probe(turned)
    assert (info.height, info.width) == shown.shape[:2]


@pytest.mark.parametrize("name", TURNS)
def test_a_turned_video_is_cut_like_one_that_was_stored_upright(name):
    matrix, turn = TURNS[name]
    stored = picture(60, 90)
    upright = plain_mp4(np.ascontiguousarray(turn(stored)))
    turned = with_matrix(plain_mp4(stored), *matrix)
    for size in ((32, 32), (20, 40), (41, 33)):
        a, b = (decode_frames(data, [0.0], size)[0].astype(int) for data in (upright, turned))
        assert a.shape == b.shape == (3, *size)
        assert np.abs(a - b)[:, 1:-1, 1:-1].mean() < 1.5


def test_without_the_matrix_the_angle_decides(monkeypatch):
    """PyAV cannot list the side data of some frames."""
    frames = []
    for name in ("upright", "clockwise", "upside down", "counterclockwise"):
        with av.open(io.BytesIO(with_matrix(plain_mp4(picture()), *TURNS[name][0]))) as container:
            frames.append((name, next(container.decode(video=0))))

    class Unlisted:
        def __init__(self, frame):
            self.rotation = frame.rotation

        @property
        def side_data(self):
            raise ValueError("31 is not a valid Type")

    for name, frame in frames:
        turn = frame_pixels.frame_orientation(Unlisted(frame))
        assert np.array_equal(turn(picture()), TURNS[name][1](picture())), name


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, kind, exif=exif, quality=98)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).convert("RGB")).astype(int)
    found = decode_image(buffer.getvalue()).transpose(1, 2, 0).astype(int)
    assert found.shape == shown.shape
    assert np.abs(found - shown).mean() < 4
    assert probe(buffer.getvalue()).height == shown.shape[0]


@pytest.mark.parametrize("orientation", [0, 9, 700])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue()).shape == (3, 48, 64)
    broken = buffer.getvalue().replace(b"MM\0*", b"MM\0\xff")
    assert decode_image(broken).shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("aspect", "shown"), [(Fraction(4, 3), (48, 85)), (Fraction(1, 2), (48, 32)), (Fraction(1), (48, 64))]
)
def test_pixels_that_are_not_square_are_shown_in_their_shape(aspect, shown):
    data = plain_mp4(picture(), aspect)
    info = probe(data)
    assert (info.height, info.width) == shown
    found = decode_frames(data, [0.0])[0]
    assert found.shape == (3, *shown)
    wanted = np.asarray(Image.fromarray(picture()).resize(shown[::-1], Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(found.astype(int) - wanted).mean() < 3
    assert decode_frames(data, [0.0], (24, 24)).shape == (1, 3, 24, 24)


def test_a_clip_of_a_video_with_wide_pixels_is_not_squeezed(coded_file, frame_numbers):
    data = coded_file("libx264", "mp4", {"crf": "4"}, count=60, pixel_aspect=Fraction(2), width=32)
    assert frame_numbers(decode_frames(data, [37.5 / 25], (32, 32))) == [37]  # all eight columns are in it
    assert decode_clip(data, ClipConfig()).video.shape == (16, 3, 32, 32)


def test_a_turned_video_with_wide_pixels_is_widened_before_it_is_turned():
    info = probe(with_matrix(plain_mp4(picture(48, 64), Fraction(2)), *TURNS["clockwise"][0]))
    assert (info.height, info.width) == (128, 48)


@pytest.mark.parametrize("aspect", [(30000, 1), (1, 30000)])
def test_pixels_of_a_shape_that_would_fill_the_memory_are_refused(aspect):
    data = plain_mp4(picture(), Fraction(4, 3))
    offset = data.index(b"pasp") + 4
    data = data[:offset] + struct.pack(">II", *aspect) + data[offset + 8 :]
    with pytest.raises(DecodeError, match=r"too_large: \d+ x \d+ pixels when resized"):
        decode_frames(data, [0.0], (1024, 1024))


def test_a_thin_picture_that_would_fill_the_memory_when_resized_is_refused():
    buffer = io.BytesIO()
    Image.new("RGB", (2, 20000)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue()).shape == (3, 20000, 2)
    with pytest.raises(DecodeError, match="too_large: 10240000 x 1024 pixels when resized"):
        decode_image(buffer.getvalue(), (1024, 1024))


def test_the_first_picture_of_an_animated_webp_is_taken(tmp_path):
    colours = [(200, 40, 90), (0, 0, 250)]
    frames = [Image.new("RGB", (40, 30), colour) for colour in colours]
    path = tmp_path / "a.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    for media in (path, path.read_bytes()):
        found = decode_image(media, (16, 16))
        assert np.abs(found.mean(axis=(1, 2)) - colours[0]).max() < 2
    with pytest.raises(DecodeError, match="too_large: 30 x 40"):
        decode_image(path, max_pixels=1000)
    with pytest.raises(DecodeError, match="corrupt"):
        decode_image(path.read_bytes()[:120])


MATRICES = {  # weights of red and blue in the luma: Rec. ITU-R BT.601, BT.709, BT.2020; FFmpeg's number of the matrix
    "bt601": (0.299, 0.114, 6),
    "bt709": (0.2126, 0.0722, 1),
    "bt2020": (0.2627, 0.0593, 9),
}


def planes(height=32, width=64):
    """Smooth luma and chroma that stay inside of what RGB can show, as fractions: (H, W) of 0..1 and -0.5..0.5."""
    y, x = np.mgrid[0:height, 0:width]
    luma = 0.3 + 0.4 * x / (width - 1)
    blue = 0.12 * np.cos(2 * np.pi * y / height)
    red = 0.12 * np.sin(2 * np.pi * x / width)
    return luma, blue, red


def quantised(plane, chroma, full, bits):
    """Rec. ITU-R BT.2100 table 9: code values of limited and full range."""
    top, unit = (1 << bits) - 1, 1 << (bits - 8)
    if full:
        code = plane * top + (1 << (bits - 1) if chroma else 0)
    else:
        code = (plane * 224 + 128) * unit if chroma else (plane * 219 + 16) * unit
    return np.rint(code).clip(0, top)


def reference(codes, matrix, full, bits):
    """Red, green and blue, 0..255, from code values."""
    red_weight, blue_weight, _ = MATRICES[matrix]
    top, unit = (1 << bits) - 1, 1 << (bits - 8)
    y, cb, cr = codes
    luma = y / top if full else (y / unit - 16) / 219
    blue, red = ((c - (1 << (bits - 1))) / top if full else (c / unit - 128) / 224 for c in (cb, cr))
    r = luma + 2 * (1 - red_weight) * red
    b = luma + 2 * (1 - blue_weight) * blue
    g = (luma - red_weight * r - blue_weight * b) / (1 - red_weight - blue_weight)
    return 255 * np.stack([r, g, b])


def halved(code):
    return code[::2, ::2]


def bounds(codes, matrix, full, bits, sampling):
    """Return the least and the greatest RGB of each pixel, 0..255.

    Of 4:2:0 the standards leave open how the chroma between two samples is found: any of the nine samples around.
    """
    if sampling == "444":
        exact = reference(codes, matrix, full, bits)
        return exact, exact
    near = [
        reference([codes[0], *(np.roll(halved(c), (y, x), (0, 1)).repeat(2, 0).repeat(2, 1) for c in codes[1:])], *kind)
        for kind in [(matrix, full, bits)]
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    ]
    return np.min(near, axis=0), np.max(near, axis=0)


def lossless_file(codes, pixel_format, matrix, full, bits):
    """Write the code values without loss (ffv1), tagged with matrix and range."""
    height, width = codes[0].shape
    kept = [codes[0], *(halved(c) if "420" in pixel_format else c for c in codes[1:])]
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, code in zip(frame.planes, kept, strict=True):
        row = np.zeros((code.shape[0], plane.line_size), np.uint8)
        values = np.ascontiguousarray(code.astype("<u2" if bits > 8 else "u1")).view(np.uint8)
        row[:, : values.shape[1]] = values
        plane.update(row.tobytes())
    frame.colorspace, frame.color_range = MATRICES[matrix][2], 2 if full else 1
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = frame.colorspace, frame.color_range
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("sampling", "bits"), [("420", 8), ("444", 8), ("420", 10), ("444", 10), ("420", 12)])
def test_colours_are_those_of_matrix_and_range(matrix, full, sampling, bits):
    codes = [quantised(plane, index > 0, full, bits) for index, plane in enumerate(planes())]
    pixel_format = f"yuv{sampling}p" + (f"{bits}le" if bits > 8 else "")
    data = lossless_file(codes, pixel_format, matrix, full, bits)
    found = decode_frames(data, [0.0])[0].astype(float)
    least, greatest = bounds(codes, matrix, full, bits, sampling)
    beyond = np.maximum(least - found, found - greatest).clip(0)[:, 2:-2, 2:-2]
    middle = (least + greatest)[:, 2:-2, 2:-2].mean(axis=(1, 2)) / 2
    bias = np.abs(found[:, 2:-2, 2:-2].mean(axis=(1, 2)) - middle)
    # Of 8 bits FFmpeg's fast conversion is taken, whose green is too bright by 1.4.
    assert beyond.max() <= (2.0 if bits == 8 else 1.2)
    assert bias.max() <= (1.5 if bits == 8 else 0.6)


def triangle(size, scaled):
    """Weights of a triangle filter that is widened when it shrinks, (scaled, size), by its definition."""
    ratio, weights = size / scaled, np.zeros((scaled, size))
    width = max(ratio, 1.0)
    for out in range(scaled):
        for source in range(size):
            distance = abs((source + 0.5) - (out + 0.5) * ratio) / width
            weights[out, source] = max(0.0, 1.0 - distance)
        weights[out] /= weights[out].sum()
    return weights


@pytest.mark.parametrize(
    ("height", "width", "scaled", "offset"),
    # Short side 32; the long side is rounded down; of a half the even neighbour: 12.5 -> 12, 13.5 -> 14.
    [(48, 86, (32, 57), (0, 12)), (86, 48, (57, 32), (12, 0)), (32, 59, (32, 59), (0, 14)), (20, 20, (32, 32), (0, 0))],
)
def test_pil_bilinear_resizes_and_crops_as_released(height, width, scaled, offset):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    full = np.einsum("yh,xw,hwc->yxc", triangle(height, scaled[0]), triangle(width, scaled[1]), pixels.astype(float))
    expected = full[offset[0] : offset[0] + 32, offset[1] : offset[1] + 32].transpose(2, 0, 1)
    actual = decode_image(buffer.getvalue(), (32, 32), resize="pil_bilinear")
    assert actual.shape == (3, 32, 32)
    assert np.abs(actual - expected).max() <= 1.0  # two passes, each rounded to a level
    other = decode_image(buffer.getvalue(), (32, 32)).astype(float)
    assert np.abs(other - expected).mean() > 1.0


@pytest.mark.parametrize("width", [96, 97, 128])
def test_resized_frames_have_the_colours_of_an_exact_filter(width):
    """swscale may leave out half of the chroma and round down, which makes frames one level too dark on average."""
    pixels = picture(144, 2 * width)
    pixels[..., 2] = 128  # smooth in all colours, since the file has half of the chroma
    data = encode_video(np.stack([pixels.transpose(2, 0, 1)] * 3), 8, crf=0, pixel_format="yuv420p")
    stored = torch.from_numpy(pixels.transpose(2, 0, 1)).float()
    exact = torch.nn.functional.interpolate(stored[None], (72, width), mode="bicubic", antialias=True)[0].clamp(0, 255)
    found = torch.from_numpy(decode_image(data, (72, width))).float()
    error = (found - exact)[:, 4:-4, 4:-4]
    assert abs(error.mean()) < 0.6
    assert error.abs().mean() < 1.0


@pytest.mark.parametrize("size", [None, (11, 11)])
def test_no_column_of_any_width_is_left_out(size):
    """swscale leaves out the last columns of some widths, depending on the pixel format that it converts to."""
    for width in range(12, 70):
        pixels = np.full((3, 16, width), [[[250]], [[60]], [[10]]], np.uint8)
        for pixel_format in ("yuv420p", "yuv444p"):
            if pixel_format == "yuv420p" and width % 2:
                continue  # libx264 refuses it
            data = encode_video(np.stack([pixels] * 2), 8, crf=0, pixel_format=pixel_format)
            found = decode_frames(data, [0.0], size)[0].astype(int)
            assert np.abs(found - pixels[:, :1, :1]).max() < 8, (width, pixel_format)
