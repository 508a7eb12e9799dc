"""Pictures are written with few colours, and read back as browsers write them."""

import struct
import zlib

import numpy as np
import pytest

from docsite import png


def as_a_browser(pixels: np.ndarray, filters: list[int]) -> bytes:
    """A PNG of RGB with a filter of each kind, by the definition, one byte after another."""
    height, width, _ = pixels.shape
    flat, out = pixels.reshape(height, -1).astype(int), bytearray()
    for row, kind in enumerate(filters):
        out.append(kind)
        for i, value in enumerate(flat[row]):
            left, up = (flat[row][i - 3] if i >= 3 else 0), (flat[row - 1][i] if row else 0)
            corner = flat[row - 1][i - 3] if row and i >= 3 else 0
            guess = left + up - corner
            paeth = min(((abs(guess - one), place, one) for place, one in enumerate((left, up, corner))))[2]
            out.append((value - (0, left, up, (left + up) // 2, paeth)[kind]) % 256)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(out))), (b"IEND", b""))
    return png.HEAD + b"".join(png._chunk(*one) for one in chunks)


def test_every_filter_is_taken_off() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    assert (png.read(as_a_browser(pixels, [0, 1, 2, 3, 4])) == pixels).all()


def test_few_colours_are_kept_as_they_are_and_a_rare_hue_has_its_own() -> None:
    pixels = np.full((40, 40, 3), 250, np.uint8)
    pixels[:30, :, 2] = np.arange(40) + 200  # greys that hardly differ
    pixels[3:5, 3:5] = (255, 120, 20)
    data = png.written(pixels, colours=8)
    (width, height, depth, colour) = struct.unpack(">IIBB", data[16:26])
    assert (width, height, depth, colour) == (40, 40, 8, 3)
    start = data.index(b"PLTE")
    palette = np.frombuffer(data[start + 4 : start + 4 + 24], np.uint8).reshape(-1, 3)
    assert [255, 120, 20] in palette.tolist()
    few = np.repeat(np.array([[[1, 2, 3], [200, 10, 0]]], np.uint8), 3, axis=0)
    kept = png.written(few)
    at = kept.index(b"IDAT")
    lines = np.frombuffer(zlib.decompress(kept[at + 4 :]), np.uint8).reshape(3, 3)[:, 1:]
    start = kept.index(b"PLTE")
    colours = np.frombuffer(kept[start + 4 : start + 10], np.uint8).reshape(-1, 3)
    assert (colours[lines] == few).all()


def test_what_a_browser_does_not_write_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 8 bits"):
        png.read(png.written(np.zeros((2, 2, 3), np.uint8)))
