"""One image file to pixels: what becomes grey and what RGB, which way is up, sizes, damage and bombs."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ict_backends.data import decode as decode_module
from ict_backends.data.decode import decode, fit_image, prepare, quiet, read_image
from ict_backends.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def hwc(content: bytes) -> np.ndarray:
    """[h, w, c] of a file."""
    return decode(content, "x").transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [
        ("1", "PNG", 1),
        ("L", "PNG", 1),
        ("LA", "PNG", 1),
        ("I;16", "PNG", 1),
        ("P", "PNG", 3),
        ("RGB", "PNG", 3),
        ("RGBA", "PNG", 3),
        ("CMYK", "JPEG", 3),
        ("CMYK", "TIFF", 3),
        ("YCbCr", "TIFF", 3),
        ("LAB", "TIFF", 3),
        ("L", "JPEG", 1),
        ("L", "GIF", 3),
        ("RGB", "WEBP", 3),
        ("RGB", "BMP", 3),
        ("RGB", "PPM", 3),
    ],
)
def test_every_mode_becomes_grey_or_rgb(mode: str, kind: str, channels: int) -> None:
    source = Image.fromarray(RGB)
    image = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257) if mode == "I;16" else None
    image = image or (Image.new("LAB", (4, 6), (200, 128, 128)) if mode == "LAB" else source.convert(mode))
    assert decode(saved(image, kind), "x").shape == (channels, 6, 4)


def test_cmyk_and_lab_keep_their_colours() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert np.abs(hwc(saved(red.convert("CMYK"), "TIFF")).astype(int) - (255, 0, 0)).max() == 0
    assert np.abs(hwc(saved(red.convert("CMYK"), "JPEG", quality=95)).astype(int) - (255, 0, 0)).max() <= 4
    grey = hwc(saved(Image.new("LAB", (4, 4), (137, 128, 128)), "TIFF")).astype(int)  # L* = 54, no colour
    assert np.ptp(grey) <= 2
    assert abs(grey.mean() - 129) <= 3


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight() -> None:
    values = np.array([[0, 128, 129, 257, 32767, 32896, 65406, 65535]], dtype=np.uint16)
    found = decode(saved(Image.fromarray(values)), "x")[0, 0]
    assert np.array_equal(found, np.rint(values[0] / 257))
    every = np.arange(256, dtype=np.uint16)[None] * 257
    assert np.array_equal(decode(saved(Image.fromarray(every)), "x")[0], np.arange(256)[None])


def test_what_has_no_eight_bits_is_refused() -> None:
    with pytest.raises(DataError, match="floating-point"):
        decode(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "x")
    with pytest.raises(DataError, match="more than 16 bits"):
        decode(saved(Image.fromarray(np.full((4, 4), 10**6, np.int32)), "TIFF"), "x")


def test_transparent_images_lie_on_white() -> None:
    rgba = np.dstack([RGB, np.full((6, 4), 255, np.uint8)])
    assert np.array_equal(hwc(saved(Image.fromarray(rgba))), RGB)  # opaque: as it is
    rgba[:3, :, 3] = 0
    assert np.array_equal(hwc(saved(Image.fromarray(rgba)))[:3], np.full((3, 4, 3), 255))
    rgba[..., :3], rgba[..., 3] = 0, 51
    assert np.array_equal(hwc(saved(Image.fromarray(rgba))), np.full((6, 4, 3), 204))  # a fifth of black
    grey = np.dstack([RGB[..., 0], np.full((6, 4), 255, np.uint8)])
    assert np.array_equal(decode(saved(Image.fromarray(grey)), "x")[0], RGB[..., 0])
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 7, 7, 7])
    assert np.array_equal(hwc(saved(palette, transparency=0)), np.full((4, 4, 3), 255))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("TIFF", {})])
def test_photographs_are_turned_upright(kind: str, options: dict) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture is to be turned by a quarter, clockwise
    left = np.zeros((6, 4, 3), np.uint8)
    left[:, :2] = 255
    found = hwc(saved(Image.fromarray(left), kind, exif=exif, **options))
    assert found.shape == (4, 6, 3)
    assert found[:2].min() > 200
    assert found[2:].max() < 50


def test_the_first_image_of_several_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert np.array_equal(hwc(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0], (255, 0, 0))


def test_a_name_says_nothing_of_the_format(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(saved(Image.fromarray(RGB), "BMP"))
    assert np.array_equal(read_image(tmp_path / "x.png").transpose(1, 2, 0), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    content = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for part in (0.2, 0.6, 0.9):
        with pytest.raises(DataError, match="^image x cannot be read: ") as error:
            decode(content[: int(part * len(content))], "x")
        assert "\n" not in str(error.value)


def test_every_byte_of_a_png_is_under_a_checksum() -> None:
    content = saved(Image.fromarray(RGB))
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 4
        with pytest.raises(DataError):
            decode(bytes(changed), "x")


def test_a_picture_that_unpacks_to_an_enormous_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"\0\0\x75\x30\0\0\x75\x30\x08\x02\0\0\0"  # 30,000 x 30,000, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )
    with pytest.raises(DataError, match="cannot be read: .*pixels"), decode_module.quiet():
        decode(png, "x")
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 20)
    with pytest.raises(DataError, match="its 4x6 pixels are more than the 20 that are read"):
        decode(saved(Image.fromarray(RGB)), "x")


def test_postscript_is_no_image() -> None:
    """Pillow would run another program to draw it."""
    content = saved(Image.fromarray(RGB), "EPS")
    with pytest.raises(DataError, match="of no format that is known"):
        decode(content, "x")


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_are_made_by_lanczos_as_everywhere_here() -> None:
    image = RNG.integers(0, 256, (3, 20, 20), dtype=np.uint8)
    for size in (8, 32):
        wanted = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize((size, size), Image.Resampling.LANCZOS))
        assert np.array_equal(prepare(image, "x", size=size).transpose(1, 2, 0), wanted)
    wide = RNG.integers(0, 256, (3, 20, 33), dtype=np.uint8)
    fitted = fit_image(wide, (3, 8, 8), resize=True, what="x")
    assert np.array_equal(prepare(wide, "x", size=8, crop="center"), fitted)


def test_the_crop_is_the_largest_square_in_the_middle() -> None:
    wide = np.arange(3 * 7, dtype=np.uint8).reshape(1, 3, 7)
    assert np.array_equal(prepare(wide, "x", crop="center"), wide[:, :, 2:5])
    assert np.array_equal(prepare(wide.transpose(0, 2, 1), "x", crop="center"), wide[:, :, 2:5].transpose(0, 2, 1))


def test_what_need_not_change_does_not() -> None:
    image = RNG.integers(0, 256, (1, 5, 9), dtype=np.uint8)
    assert prepare(image, "x") is image
    square = image[:, :, :5]
    assert prepare(square, "x", size=5) is square


def test_images_that_cannot_fit_are_refused() -> None:
    with pytest.raises(DataError, match="^image x is 5x9 grey, which is no square; --crop center"):
        prepare(np.zeros((1, 5, 9), np.uint8), "x", size=4)
    for shape in ((3, 1, 1), (3, 1, 7)):
        with pytest.raises(DataError, match=r"^image x is 1x\d RGB; a network needs at least 2x2"):
            prepare(np.zeros(shape, np.uint8), "x", size=4, crop="center")


def png(bits: int, colour: int, rows: list[bytes], transparent: bytes = b"") -> bytes:
    """A PNG with these bits a sample, kind of colour, packed rows and tRNS, whatever Pillow can write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    samples = {0: 1, 2: 3, 4: 2}[colour]
    width = 8 * len(rows[0]) // (bits * samples)
    header = width.to_bytes(4, "big") + len(rows).to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [chunk(b"IHDR", header), chunk(b"tRNS", transparent) if transparent else b"", chunk(b"IDAT", pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (1, 0b01010101, 0, [255, 255] * 4),
        (2, 0b00011011, 1, [0, 255, 170, 255]),
        (4, 0x37, 3, [255, 119]),
        (4, 0x37, 5, [51, 119]),
        (8, 200, 200, [255]),
    ],
)
def test_a_transparent_value_is_of_the_scale_of_the_pixels(
    bits: int, row: int, transparent: int, expected: list[int]
) -> None:
    found = decode(png(bits, 0, [bytes([row] * 2)] * 2, transparent.to_bytes(2, "big")), "x")
    assert found.tolist() == [[expected * 2] * 2]


def test_a_transparent_value_of_sixteen_bits() -> None:
    row = b"".join(value.to_bytes(2, "big") for value in (0, 257, 65535, 1000))
    assert decode(png(16, 0, [row, row], (257).to_bytes(2, "big")), "x")[0, 0].tolist() == [0, 255, 255, 4]
    colours = b"\x10\x20\x30\x40\x50\x60" + b"\x11\x20\x30\x40\x50\x60"
    found = decode(png(16, 2, [colours, colours], colours[:6]), "x")
    assert found[:, 0].tolist() == [[255, 0x11], [255, 0x30], [255, 0x50]]


def test_sixteen_bits_of_grey_with_alpha_stay_grey() -> None:
    row = b"".join(value.to_bytes(2, "big") for value in (0x8000, 65535, 0x4000, 0))
    assert decode(png(16, 4, [row, row]), "x").tolist() == [[[128, 255]] * 2]


def test_white_may_be_zero() -> None:
    values = np.array([[0, 257, 65535], [1000, 30_000, 500]], np.uint16)
    found = decode(saved(Image.fromarray(values), "TIFF", tiffinfo={262: 0}), "x")
    assert found[0].tolist() == ((65535 - values.astype(int) + 128) // 257).tolist()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"none at all", b"II*\0\xff"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_metadata_that_cannot_be_read_are_no_fault_of_the_picture(kind: str, exif: bytes) -> None:
    image = Image.fromarray(RGB)
    lossless = {"lossless": True} if kind == "WEBP" else {}
    with quiet():
        found = hwc(saved(image, kind, exif=exif, **lossless))
    np.testing.assert_array_equal(found, hwc(saved(image, kind, **lossless)))


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not there")
@pytest.mark.parametrize("name", ["F09_bad_exif.png", "g16_miniswhite.tif", "g16_trns0.png", "g2_trns1.png"])
def test_files_that_failed_are_read(name: str) -> None:
    with Image.open(CASES / name) as image:
        raw = np.asarray(image).astype(int)
        transparent = image.info.get("transparency")
    found = read_image(CASES / name)
    if name == "F09_bad_exif.png":
        np.testing.assert_array_equal(found.transpose(1, 2, 0), raw)
    elif name == "g16_miniswhite.tif":
        np.testing.assert_array_equal(found[0], (65535 - raw + 128) // 257)
    elif name == "g16_trns0.png":
        np.testing.assert_array_equal(found[0], np.where(raw == transparent, 255, (raw + 128) // 257))
    else:
        np.testing.assert_array_equal(found[0], np.where(raw == 85 * transparent, 255, raw))
