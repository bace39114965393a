"""Decoding: pixel values of every mode, orientation, damaged files."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from raykd.data.decode import (
    FORMATS,
    MOST_PIXELS,
    DecodingLog,
    check_header,
    decode_all,
    decode_files,
)
from raykd.data.pixels import PLAIN, Rules

SIZE = 4
LEVELS = np.array([0, 60, 200, 255], dtype=np.uint8)[:, None].repeat(SIZE, 1)
"""Four rows of gray."""
COLORS = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230], [128, 128, 128]], dtype=np.uint8)[
    :, None
].repeat(SIZE, 1)
"""Four rows of color."""


def decoded(path: Path, channels: int = 3, rules: Rules = PLAIN, size: int = SIZE) -> np.ndarray:
    """(H, W, C) uint8."""
    shape = (channels, size, size)
    image = decode_files(str(path.parent), [path.name], shape, rules).numpy()
    assert np.array_equal(image, decode_all(str(path.parent), [path.name], shape, rules))
    return image[0].transpose(1, 2, 0)


def first_pixels(path: Path, channels: int = 1, rules: Rules = PLAIN) -> list:
    """First pixel of each row: a level, or a list of three."""
    picture = decoded(path, channels, rules)
    assert (picture == picture[:, :1]).all(), "a row has one value"
    return picture[:, 0].squeeze(-1).tolist() if channels == 1 else picture[:, 0].tolist()


def decoding_log(path: Path, rules: Rules = PLAIN) -> DecodingLog:
    log = DecodingLog()
    decode_all(str(path.parent), [path.name], (3, SIZE, SIZE), rules, log)
    return log


def write_png(
    path: Path, values: np.ndarray, bits: int, color: int, transparent: Sequence[int] = ()
) -> None:
    """A PNG of any depth.

    Args:
        values: (H, W) or (H, W, C).
        bits: 1 to 16.
        color: PNG's color type: 0 gray, 2 RGB, 4 gray and alpha, 6 RGB and alpha.
        transparent: the value or color of its tRNS chunk.
    """
    height, width = values.shape[:2]
    flat = values.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in flat]
    elif bits == 8:
        lines = [row.astype(np.uint8).tobytes() for row in flat]
    else:
        spread = np.unpackbits(flat.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        lines = [np.packbits(row.ravel()).tobytes() for row in spread]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))]
    if transparent:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks.append((b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))))
    chunks.append((b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def write_tiff(path: Path, raw: bytes, tags: dict[int, int | tuple[int, ...]]) -> None:
    """An uncompressed little-endian TIFF of `SIZE` x `SIZE` pixels."""
    all_tags = {256: SIZE, 257: SIZE, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: SIZE}
    all_tags |= {279: len(raw), **tags}
    head = 8 + 2 + 12 * len(all_tags) + 4
    entries, extra = b"", b""
    all_tags[273] = head
    for tag, value in sorted(all_tags.items()):
        many = value if isinstance(value, tuple) else (value,)
        kind, packed = (4, struct.pack("<I", many[0])) if tag in (273, 279) else (3, b"")
        packed = packed or struct.pack(f"<{len(many)}H", *many)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", head + len(raw) + len(extra)), extra + packed
        entries += struct.pack("<HHI", tag, kind, len(many)) + packed.ljust(4, b"\0")
    path.write_bytes(
        struct.pack("<2sHIH", b"II", 42, 8, len(all_tags)) + entries + b"\0" * 4 + raw + extra
    )


class TestModes:
    """One test per mode, in the order of the table in the documentation."""

    def test_1(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS > 100).save(tmp_path / "a.png")
        assert first_pixels(tmp_path / "a.png") == [0, 0, 255, 255]

    def test_l(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS).save(tmp_path / "a.png")
        assert first_pixels(tmp_path / "a.png") == [0, 60, 200, 255]
        assert first_pixels(tmp_path / "a.png", 3)[1] == [60] * 3

    @pytest.mark.parametrize(("bits", "factor"), [(1, 255), (2, 85), (4, 17)])
    def test_l_of_few_bits(self, tmp_path: Path, bits: int, factor: int) -> None:
        values = (np.arange(SIZE)[:, None].repeat(SIZE, 1)) % (1 << bits)
        write_png(tmp_path / "a.png", values, bits, 0)
        assert first_pixels(tmp_path / "a.png") == (values[:, 0] * factor).tolist()

    def test_p(self, tmp_path: Path) -> None:
        Image.fromarray(COLORS).quantize(8).save(tmp_path / "a.png")
        assert first_pixels(tmp_path / "a.png", 3) == COLORS[:, 0].tolist()

    @pytest.mark.parametrize("kind", ["bytes", "index"])
    def test_p_with_transparency(self, tmp_path: Path, kind: str) -> None:
        picture = Image.fromarray(COLORS).quantize(8)
        index = picture.getpixel((0, 0))
        assert isinstance(index, int)
        alphas = bytes(0 if i == index else 128 if i == index + 1 else 255 for i in range(8))
        picture.save(tmp_path / "a.png", transparency=alphas if kind == "bytes" else index)
        actual = first_pixels(tmp_path / "a.png", 3)
        assert actual[0] == [255, 255, 255]
        if kind == "index":
            assert actual[1:] == COLORS[1:, 0].tolist()
        assert decoding_log(tmp_path / "a.png").counts["transparent"] == 1

    def test_p_with_palette_of_rgba(self, tmp_path: Path) -> None:
        picture = Image.fromarray(COLORS).quantize(8)
        picture.save(tmp_path / "a.gif", transparency=picture.getpixel((0, 0)))
        assert first_pixels(tmp_path / "a.gif", 3) == [[255] * 3, *COLORS[1:, 0].tolist()]

    def test_pa(self, tmp_path: Path) -> None:
        palette = [0] * 768
        for number, color in enumerate(COLORS[:, 0].tolist()):
            palette[3 * number : 3 * number + 3] = color
        colors = [part * 257 for part in np.array(palette).reshape(256, 3).T.ravel().tolist()]
        indices = np.arange(SIZE)[:, None].repeat(SIZE, 1)
        alphas = np.array([0, 255, 255, 255])[:, None].repeat(SIZE, 1)
        raw = np.stack([indices, alphas], -1).astype(np.uint8).tobytes()
        write_tiff(
            tmp_path / "a.tif", raw, {258: (8, 8), 262: 3, 277: 2, 320: tuple(colors), 338: 2}
        )
        with Image.open(tmp_path / "a.tif") as picture:
            assert picture.mode == "PA"
        assert first_pixels(tmp_path / "a.tif", 3) == [[255] * 3, *COLORS[1:, 0].tolist()]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_la(self, tmp_path: Path, channels: int) -> None:
        alphas = np.array([255, 255, 51, 0], dtype=np.uint8)[:, None].repeat(SIZE, 1)
        write_png(tmp_path / "a.png", np.stack([LEVELS, alphas], -1), 8, 4)
        expected = [0, 60, 244, 255]  # 200 * 0.2 + 255 * 0.8
        actual = first_pixels(tmp_path / "a.png", channels)
        assert actual == (expected if channels == 1 else [[level] * 3 for level in expected])

    @pytest.mark.parametrize("channels", [1, 3])
    def test_la_premultiplied(self, tmp_path: Path, channels: int) -> None:
        alphas = np.array([255, 255, 51, 0], dtype=np.uint8)[:, None].repeat(SIZE, 1)
        levels = (LEVELS.astype(int) * alphas // 255).astype(np.uint8)
        raw = np.stack([levels, alphas], -1).tobytes()
        write_tiff(tmp_path / "a.tif", raw, {258: (8, 8), 277: 2, 338: 1})
        with Image.open(tmp_path / "a.tif") as picture:
            assert picture.mode == "La"
        actual = (
            np.array(first_pixels(tmp_path / "a.tif", channels)).reshape(SIZE, -1)[:, 0].tolist()
        )
        assert actual == pytest.approx([0, 60, 244, 255], abs=1)

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
    def test_16_bits(self, tmp_path: Path, suffix: str) -> None:
        values = LEVELS.astype(np.uint16) * 256 + 200
        Image.fromarray(values).save(tmp_path / f"a{suffix}")
        assert first_pixels(tmp_path / f"a{suffix}") == [0, 60, 200, 255]

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_16_bits_of_either_byte_order(self, tmp_path: Path, order: str) -> None:
        values = (LEVELS.astype(np.uint16) * 257).astype(f"{order}u2")
        mode = "I;16" if order == "<" else "I;16B"
        picture = Image.frombytes(mode, (SIZE, SIZE), values.tobytes())
        picture.save(tmp_path / "a.tif")
        assert first_pixels(tmp_path / "a.tif") == [0, 60, 200, 255]

    def test_16_bits_with_transparent_value(self, tmp_path: Path) -> None:
        write_png(tmp_path / "a.png", LEVELS.astype(np.uint16) * 257, 16, 0, [60 * 257])
        assert first_pixels(tmp_path / "a.png") == [0, 255, 200, 255]
        assert first_pixels(tmp_path / "a.png", 3)[1] == [255] * 3

    @pytest.mark.parametrize(("color", "channels"), [(2, 3), (6, 4)])
    def test_16_bits_of_color(self, tmp_path: Path, color: int, channels: int) -> None:
        values = np.full((SIZE, SIZE, channels), 65535, np.uint16)
        values[..., :3] = COLORS.astype(np.uint16) * 256 + 200
        write_png(tmp_path / "a.png", values, 16, color)
        assert first_pixels(tmp_path / "a.png", 3) == COLORS[:, 0].tolist()

    def test_12_bits(self, tmp_path: Path) -> None:
        values = (LEVELS.astype(int) * 16 + 3).reshape(-1, 2)  # two pixels lie in three bytes
        three = [values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1]]
        raw = np.stack(three, -1).astype(np.uint8).tobytes()
        write_tiff(tmp_path / "a.tif", raw, {258: 12})
        assert first_pixels(tmp_path / "a.tif") == [0, 60, 200, 255]
        assert not decoding_log(tmp_path / "a.tif").warnings(Rules())

    def test_white_is_zero(self, tmp_path: Path) -> None:
        write_tiff(tmp_path / "a.tif", LEVELS.tobytes(), {262: 0})
        assert first_pixels(tmp_path / "a.tif") == [255, 195, 55, 0]
        deep = (LEVELS.astype("<u2") * 257).tobytes()
        write_tiff(tmp_path / "b.tif", deep, {258: 16, 262: 0})
        assert first_pixels(tmp_path / "b.tif") == [255, 195, 55, 0]

    def test_32_bit_integers_raise(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS.astype(np.int32) * 257).save(tmp_path / "a.tif")
        for look in (check_header, decoded):
            with pytest.raises(ValueError, match=r"a\.tif .*0 to 65535.*data\.value_range"):
                look(tmp_path / "a.tif")

    def test_32_bit_integers_by_range(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS.astype(np.int32) * 257 - 1000).save(tmp_path / "a.tif")
        actual = first_pixels(tmp_path / "a.tif", 1, Rules(value_range=(-1000, 64535)))
        assert actual == [0, 60, 200, 255]
        clipped = first_pixels(tmp_path / "a.tif", 1, Rules(value_range=(15000, 16000)))
        assert clipped == [0, 0, 255, 255]

    def test_unsigned_32_bit_integers_by_range(self, tmp_path: Path) -> None:
        values = LEVELS.astype("<u4") * 16_843_009  # up to 2**32 - 1
        write_tiff(tmp_path / "a.tif", values.tobytes(), {258: 32, 339: 1})
        actual = first_pixels(tmp_path / "a.tif", 1, Rules(value_range=(0, 2**32 - 1)))
        assert actual == [0, 60, 200, 255]
        with pytest.raises(ValueError, match=r"here 0 to 4\.29497e\+09"):
            check_header(tmp_path / "a.tif")

    def test_signed_integers_raise(self, tmp_path: Path) -> None:
        write_tiff(tmp_path / "a.tif", LEVELS.tobytes(), {339: 2})
        with pytest.raises(ValueError, match=r"a\.tif cannot be decoded: signed 8-bit"):
            decoded(tmp_path / "a.tif")
        write_tiff(tmp_path / "b.tif", LEVELS.astype("<i2").tobytes(), {258: 16, 339: 2})
        with pytest.raises(ValueError, match=r"b\.tif cannot be decoded: integers"):
            decoded(tmp_path / "b.tif")

    @pytest.mark.parametrize("channels", [1, 3])
    def test_floats_up_to_1(self, tmp_path: Path, channels: int) -> None:
        Image.fromarray((LEVELS / 255).astype(np.float32)).save(tmp_path / "a.tif")
        actual = (
            np.array(first_pixels(tmp_path / "a.tif", channels)).reshape(SIZE, -1)[:, 0].tolist()
        )
        assert actual == [0, 60, 200, 255]

    @pytest.mark.parametrize("values", [LEVELS, LEVELS / 255 - 0.5, LEVELS / 250])
    def test_other_floats_raise(self, tmp_path: Path, values: np.ndarray) -> None:
        Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tif")
        for look in (check_header, decoded):
            with pytest.raises(ValueError, match=r"a\.tif .*floats.*data\.value_range"):
                look(tmp_path / "a.tif")

    def test_other_floats_by_range(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS.astype(np.float32)).save(tmp_path / "a.tif")
        assert first_pixels(tmp_path / "a.tif", 1, Rules(value_range=(0, 255))) == [0, 60, 200, 255]

    def test_nan_raises(self, tmp_path: Path) -> None:
        values = (LEVELS / 255).astype(np.float32)
        values[0, 0] = np.nan
        Image.fromarray(values).save(tmp_path / "a.tif")
        for rules in (Rules(), Rules(value_range=(0, 1))):
            with pytest.raises(ValueError, match=r"a\.tif .*not finite"):
                decoded(tmp_path / "a.tif", rules=rules)

    def test_rgb(self, tmp_path: Path) -> None:
        for suffix in (".png", ".bmp", ".ppm", ".tga", ".tif", ".qoi", ".dib"):
            Image.fromarray(COLORS).save(tmp_path / f"a{suffix}")
            assert first_pixels(tmp_path / f"a{suffix}", 3) == COLORS[:, 0].tolist(), suffix
        gray = np.asarray(Image.fromarray(COLORS).convert("L"))[:, 0].tolist()
        assert first_pixels(tmp_path / "a.png", 1) == gray

    @pytest.mark.parametrize("channels", [1, 3])
    def test_rgba(self, tmp_path: Path, channels: int) -> None:
        alphas = np.array([255, 0, 255, 51], dtype=np.uint8)[:, None, None].repeat(SIZE, 1)
        Image.fromarray(np.concatenate([COLORS, alphas], -1)).save(tmp_path / "a.png")
        expected = [[250, 10, 20], [255] * 3, [60, 70, 230], [230] * 3]  # 0.2 * 128 + 0.8 * 255
        if channels == 3:
            assert first_pixels(tmp_path / "a.png", 3) == expected
        else:
            assert first_pixels(tmp_path / "a.png", 1)[1::2] == [255, 230]

    def test_rgba_without_transparency_is_rgb(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        colors = generator.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(colors).save(tmp_path / "rgb.png")
        Image.fromarray(np.dstack([colors, np.full((9, 7), 255, np.uint8)])).save(
            tmp_path / "rgba.png"
        )
        for channels in (1, 3):
            left, right = (decoded(tmp_path / f"{name}.png", channels) for name in ("rgb", "rgba"))
            assert np.array_equal(left, right)
        assert decoding_log(tmp_path / "rgba.png").notes(Rules()) == ()

    def test_rgba_premultiplied(self, tmp_path: Path) -> None:
        alphas = np.array([255, 0, 255, 51])[:, None, None].repeat(SIZE, 1)
        stored = np.concatenate([COLORS * (alphas / 255), alphas], -1).astype(np.uint8)
        write_tiff(
            tmp_path / "a.tif", stored.tobytes(), {258: (8, 8, 8, 8), 262: 2, 277: 4, 338: 1}
        )
        actual = np.array(first_pixels(tmp_path / "a.tif", 3))
        expected = [[250, 10, 20], [255] * 3, [60, 70, 230], [230] * 3]
        assert np.abs(actual - expected).max() <= 2

    def test_rgbx(self, tmp_path: Path) -> None:
        stored = np.concatenate([COLORS, np.zeros((SIZE, SIZE, 1), np.uint8)], -1)
        write_tiff(
            tmp_path / "a.tif", stored.tobytes(), {258: (8, 8, 8, 8), 262: 2, 277: 4, 338: 0}
        )
        assert first_pixels(tmp_path / "a.tif", 3) == COLORS[:, 0].tolist()

    @pytest.mark.parametrize(
        ("bits", "color", "value"),
        [(1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1), (8, 2, 1), (16, 2, 257)],
    )
    def test_transparent_color(self, tmp_path: Path, bits: int, color: int, value: int) -> None:
        unit = 257 if bits == 16 else 1
        values = np.array([0, 1, 0, 1])[:, None].repeat(SIZE, 1) * unit
        many = 3 if color == 2 else 1
        values = values[..., None].repeat(many, -1)
        write_png(tmp_path / "a.png", values, bits, color, [value] * many)
        assert first_pixels(tmp_path / "a.png") == [0, 255, 0, 255]

    def test_cmyk(self, tmp_path: Path) -> None:
        stored = np.array([[0, 245, 235, 5], [0, 0, 0, 255], [0, 0, 0, 0], [255, 0, 0, 0]])
        picture = Image.fromarray(
            stored.astype(np.uint8)[:, None].repeat(SIZE, 1).copy(), mode="CMYK"
        )
        expected = np.array([[250, 10, 20], [0, 0, 0], [255, 255, 255], [0, 255, 255]])
        picture.save(tmp_path / "a.tif")
        assert np.abs(np.array(first_pixels(tmp_path / "a.tif", 3)) - expected).max() <= 1
        big = picture.resize((32, 32), Image.Resampling.NEAREST)  # Adobe's: stored inverted
        big.save(tmp_path / "a.jpg", quality=100, subsampling=0)
        actual = decoded(tmp_path / "a.jpg", 3, size=32)[4::8, 16]
        assert np.abs(actual.astype(int) - expected).max() <= 4

    def test_ycbcr(self, tmp_path: Path) -> None:
        Image.fromarray(COLORS).convert("YCbCr").save(tmp_path / "a.tif")
        actual = np.array(first_pixels(tmp_path / "a.tif", 3))
        assert np.abs(actual - COLORS[:, 0].astype(int)).max() <= 4

    @pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without littlecms2")
    @pytest.mark.parametrize("channels", [1, 3])
    def test_lab(self, tmp_path: Path, channels: int) -> None:
        Image.fromarray(COLORS).convert("LAB").save(tmp_path / "a.tif")
        expected = Image.fromarray(COLORS).convert("L" if channels == 1 else "RGB")
        actual = decoded(tmp_path / "a.tif", channels).squeeze().astype(int)
        assert np.abs(actual - np.asarray(expected).astype(int)).max() <= 12

    @pytest.mark.parametrize("channels", [1, 3])
    def test_hsv(self, channels: int) -> None:
        from raykd.data.pixels import Depth, Traits, flatten

        picture = Image.fromarray(COLORS).convert("HSV")  # no file format stores it
        actual = flatten(picture, channels, Depth(8), Rules(), Traits())
        expected = Image.fromarray(COLORS).convert(actual.mode)
        assert np.abs(np.asarray(actual).astype(int) - np.asarray(expected)).max() <= 3

    @pytest.mark.parametrize(("suffix", "quality"), [(".jpg", 95), (".webp", 95), (".avif", 90)])
    def test_lossy_formats(self, tmp_path: Path, suffix: str, quality: int) -> None:
        if suffix != ".jpg" and not features.check(suffix[1:]):
            pytest.skip(f"Pillow without {suffix}")
        big = Image.fromarray(COLORS).resize((32, 32), Image.Resampling.NEAREST)
        big.save(tmp_path / f"a{suffix}", quality=quality)
        actual = decoded(tmp_path / f"a{suffix}", 3, size=32)[4::8, 16]
        assert np.abs(actual.astype(int) - COLORS[:, 0]).max() <= 20

    @pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
    def test_jpeg_2000(self, tmp_path: Path) -> None:
        Image.fromarray(COLORS).save(tmp_path / "a.jp2")
        assert first_pixels(tmp_path / "a.jp2", 3) == COLORS[:, 0].tolist()
        Image.fromarray(LEVELS.astype(np.uint16) * 257).save(tmp_path / "b.jp2")
        assert first_pixels(tmp_path / "b.jp2") == [0, 60, 200, 255]

    def test_other_maxima_of_ppm(self, tmp_path: Path) -> None:
        content = b"P5 4 4 15 " + bytes([0, 0, 0, 0, 3, 3, 3, 3, 10, 10, 10, 10, 15, 15, 15, 15])
        (tmp_path / "a.pgm").write_bytes(content)
        assert first_pixels(tmp_path / "a.pgm") == [0, 51, 170, 255]
        values = np.array([0, 100, 500, 1000], ">u2")[:, None].repeat(4, 1)
        (tmp_path / "b.pgm").write_bytes(b"P5 4 4 1000 " + values.tobytes())
        assert first_pixels(tmp_path / "b.pgm") == [0, 25, 128, 255]


class TestBackground:
    @pytest.mark.parametrize(
        ("background", "level"), [("white", 255), ("gray", 128), ("black", 0), ("none", 77)]
    )
    def test_each(self, tmp_path: Path, background: str, level: int) -> None:
        picture = np.full((SIZE, SIZE, 4), 77, np.uint8)
        picture[..., 3] = 0
        Image.fromarray(picture).save(tmp_path / "a.png")
        rules = Rules(background=background)  # type: ignore[arg-type]
        assert first_pixels(tmp_path / "a.png", 3, rules) == [[level] * 3] * SIZE
        messages = decoding_log(tmp_path / "a.png", rules).warnings(rules)
        assert bool(messages) == (background != "none")

    def test_palettes_without_background_do_not_warn(self, tmp_path: Path) -> None:
        picture = Image.fromarray(COLORS).quantize(8)
        picture.save(tmp_path / "a.png", transparency=bytes([0, 100, 255, 255]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert first_pixels(tmp_path / "a.png", 3, Rules("none")) == COLORS[:, 0].tolist()


STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Transformation of an upright image before it is stored under an orientation."""


class TestOrientation:
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_each(self, tmp_path: Path, suffix: str, orientation: int) -> None:
        quarters = np.array([[0, 60], [140, 255]], np.uint8).repeat(32, 0).repeat(48, 1)
        oriented = Image.fromarray(quarters)  # wider than high
        exif = Image.Exif()
        exif[0x0112] = orientation
        turn = STORED.get(orientation)
        stored = oriented if turn is None else oriented.transpose(turn)
        options: dict = {"lossless": True} if suffix == ".webp" else {}
        stored.save(tmp_path / f"a{suffix}", exif=exif, **options)
        for channels, size in ((1, 64), (3, 8)):  # at 8 a JPEG is decoded small
            actual = decoded(tmp_path / f"a{suffix}", channels, size=size)[..., 0]
            far = size // 8
            corners = [actual[i, j] for i in (far, -far - 1) for j in (far, -far - 1)]
            assert np.abs(np.array(corners, int) - [0, 60, 140, 255]).max() <= 8
        turned = decoding_log(tmp_path / f"a{suffix}").counts["turned"]
        assert turned == (orientation != 1)

    @pytest.mark.parametrize("value", [0, 9, 300])
    def test_unknown_orientation_is_ignored(self, tmp_path: Path, value: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = value
        Image.fromarray(LEVELS).save(tmp_path / "a.png", exif=exif)
        assert first_pixels(tmp_path / "a.png") == [0, 60, 200, 255]

    def test_damaged_metadata(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS).resize((32, 32)).save(
            tmp_path / "a.jpg", exif=b"Exif\0\0XX garbage that is no TIFF header"
        )
        assert decoded(tmp_path / "a.jpg").shape == (SIZE, SIZE, 3)


class TestFrames:
    @pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif", ".png", ".apng"])
    def test_first_frame_is_used(self, tmp_path: Path, suffix: str) -> None:
        first = Image.fromarray(LEVELS).convert("RGB")
        more = [Image.fromarray(255 - LEVELS).convert("RGB")]
        options: dict = {"lossless": True} if suffix == ".webp" else {}
        kind = {"format": "PNG"} if suffix == ".apng" else {}
        file = tmp_path / f"a{suffix}"
        first.save(file, save_all=True, append_images=more, **options, **kind)
        assert first_pixels(file) == [0, 60, 200, 255]
        assert "more than one frame" in decoding_log(file).notes(Rules())[0]


class TestShapes:
    @pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 200), (2, 2)])
    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_thin_and_tiny_pictures(
        self, tmp_path: Path, shape: tuple[int, int], suffix: str
    ) -> None:
        Image.fromarray(np.full(shape, 90, np.uint8)).save(tmp_path / f"a{suffix}")
        for size in (1, 4, 64):
            assert (decoded(tmp_path / f"a{suffix}", size=size) == 90).all()


class TestDamaged:
    def save(self, path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".ppm", ".gif", ".tif", ".webp"])
    def test_truncated_files(self, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"a{suffix}"
        self.save(file)
        content = file.read_bytes()
        for share in (0.5, 0.02):
            file.write_bytes(content[: int(share * len(content))])
            with pytest.raises(ValueError, match=f"a\\{suffix} cannot be decoded"):
                decoded(file, size=8)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "empty"),
            (b"<!DOCTYPE html><html>404</html>", "web page"),
            (b"\0\0\0\x18ftypheic" + bytes(500), "HEIC"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (bytes(1000), "zeros"),
            (b"%PDF-1.4", "PDF"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
            (b"not an image", "not an image"),
            (b"\x89PNG\r\n\x1a\n", "not an image|cannot"),
        ],
    )
    def test_other_content(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "a.jpg").write_bytes(content)
        for look in (check_header, decoded):
            with pytest.raises(ValueError, match=rf"a\.jpg cannot be decoded .*({message})"):
                look(tmp_path / "a.jpg")

    def test_formats_that_pillow_does_not_read(self, tmp_path: Path) -> None:
        values = (LEVELS / 255).astype("<f8")
        write_tiff(tmp_path / "a.tif", values.tobytes(), {258: 64, 339: 3})
        with pytest.raises(ValueError, match=r"a TIFF of a kind that Pillow does not read"):
            decoded(tmp_path / "a.tif")
        (tmp_path / "a.pfm").write_bytes(b"PF\n4 4\n-1.0\n" + bytes(4 * 4 * 3 * 4))
        with pytest.raises(ValueError, match=r"a color PFM or PAM file"):
            decoded(tmp_path / "a.pfm")

    def test_wrong_suffix(self, tmp_path: Path) -> None:
        Image.fromarray(COLORS).save(tmp_path / "a.jpg", format="PNG")
        assert first_pixels(tmp_path / "a.jpg", 3) == COLORS[:, 0].tolist()

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data larger")
    def test_random_damage_never_crashes(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(1)
        for suffix in (".jpg", ".png", ".gif", ".tif", ".webp", ".tga", ".qoi", ".bmp"):
            file = tmp_path / f"a{suffix}"
            self.save(file)
            content = np.frombuffer(file.read_bytes(), np.uint8)
            for _ in range(20):
                damaged = content.copy()
                damaged[generator.integers(0, min(400, len(content)), 6)] ^= 0x5A
                file.write_bytes(damaged.tobytes())
                with suppress(ValueError):  # anything else fails the test
                    assert decoded(file, size=8).shape == (8, 8, 3)

    @pytest.mark.parametrize("kind", ["png", "tiff"])
    def test_decompression_bombs(self, tmp_path: Path, kind: str) -> None:
        side = 20_000
        assert side**2 > MOST_PIXELS
        if kind == "png":
            head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
            chunk = b"IHDR" + head
            content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
            content += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
            (tmp_path / "a.jpg").write_bytes(content + struct.pack(">I", zlib.crc32(b"IDAT")))
        else:
            write_tiff(tmp_path / "a.jpg", b"", {256: side, 257: side})
        for look in (check_header, decoded):
            with pytest.raises(ValueError, match=r"a\.jpg cannot be decoded .*178,956,970 pixels"):
                look(tmp_path / "a.jpg")

    def test_decompression_bombs_without_pillows_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        write_tiff(tmp_path / "a.tif", b"", {256: 20_000, 257: 20_000})
        with pytest.raises(ValueError, match="178,956,970 pixels"):
            decoded(tmp_path / "a.tif")

    def test_undecodable_file_names(self, tmp_path: Path) -> None:
        name = b"a\xff\nb.jpg".decode("utf-8", "surrogateescape")
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"a\\xff\\nb\.jpg cannot be decoded"):
            decoded(tmp_path / name)


class TestWarnings:
    def test_dark_pictures_of_16_bits(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS.astype(np.uint16) * 16).save(tmp_path / "a.png")
        (warning,) = decoding_log(tmp_path / "a.png").warnings(Rules())
        assert "above 4080" in warning
        assert "data.value_range: [0, 4095]" in warning
        ranged = Rules(value_range=(0, 4080))
        assert first_pixels(tmp_path / "a.png", 1, ranged) == [0, 60, 200, 255]
        assert decoding_log(tmp_path / "a.png", ranged).warnings(ranged) == ()

    def test_8_bits_in_16(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS.astype(np.uint16)).save(tmp_path / "a.png")
        (warning,) = decoding_log(tmp_path / "a.png").warnings(Rules())
        assert "become black" in warning
        assert "a.png" in warning

    @pytest.mark.parametrize("channels", [3, 4])
    def test_dark_color_pictures_of_16_bits(self, tmp_path: Path, channels: int) -> None:
        values = np.full((SIZE, SIZE, channels), 65535, dtype=np.uint16)  # opaque
        values[..., :3] = COLORS.astype(np.uint16) * 16
        write_png(tmp_path / "a.png", values, 16, {3: 2, 4: 6}[channels])
        (warning,) = decoding_log(tmp_path / "a.png").warnings(PLAIN)
        assert "no 16-bit color image has a value above 4095 of 65535" in warning
        values[..., :3] = COLORS
        write_png(tmp_path / "a.png", values, 16, {3: 2, 4: 6}[channels])
        (warning,) = decoding_log(tmp_path / "a.png").warnings(PLAIN)
        assert "16 bits per channel and become black" in warning
        assert "a.png" in warning
        values[..., :3] = COLORS.astype(np.uint16) * 257
        write_png(tmp_path / "a.png", values, 16, {3: 2, 4: 6}[channels])
        assert decoding_log(tmp_path / "a.png").warnings(PLAIN) == ()

    def test_ordinary_pictures(self, tmp_path: Path) -> None:
        Image.fromarray(LEVELS.astype(np.uint16) * 257).save(tmp_path / "a.png")
        Image.fromarray(COLORS).save(tmp_path / "b.png")
        log = DecodingLog()
        decode_all(str(tmp_path), ["a.png", "b.png"], (1, 4, 4), Rules(), log)
        assert log.notes(Rules()) == log.warnings(Rules()) == ()
        assert log.images == 2


def test_every_file_mode_is_tested() -> None:
    """Every mode of TIFF, the widest format, has a test above."""
    tested = {
        *("1", "L", "P", "PA", "LA", "La", "I;16", "I", "F", "RGB", "RGBA", "CMYK", "YCbCr"),
        "I;16B",
        "LAB",
    }
    modes = {mode for mode, _ in TiffImagePlugin.OPEN_INFO.values()}
    assert modes <= tested


def test_pillow_reads_formats() -> None:
    Image.init()
    registered = Image.registered_extensions()
    for name, suffixes in FORMATS.items():
        for suffix in suffixes:
            kind = registered.get(suffix)
            assert kind in (name, None) or suffix in (".dib", ".mpo"), suffix


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_of_compressed_tiff(tmp_path: Path, orientation: int) -> None:
    quarters = np.array([[0, 60], [140, 255]], np.uint8).repeat(32, 0).repeat(48, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(quarters).transpose(STORED[orientation])
    stored.save(tmp_path / "a.tif", exif=exif, compression="tiff_lzw")
    actual = decoded(tmp_path / "a.tif", 1, size=64)
    assert actual[[8, 8, -8, -8], [8, -8, 8, -8], 0].tolist() == [0, 60, 140, 255]
