"""A screenshot is written with few colours: a page of text and flat areas takes a third of the bytes that way, and looks the same."""

import struct
import zlib

import numpy as np

HEAD = b"\x89PNG\r\n\x1a\n"


def read(data: bytes) -> np.ndarray:
    """Pixels (rows, columns, 3) of a PNG of 8 bits a channel that is not interlaced, as a browser writes it; transparency is left out."""
    place, chunks = len(HEAD), {}
    while place < len(data):
        (length,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        chunks[kind] = chunks.get(kind, b"") + data[place + 8 : place + 8 + length]
        place += 12 + length
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if depth != 8 or colour not in (2, 6) or interlaced:
        raise ValueError(f"given a PNG of depth {depth}, colour type {colour}, interlace {interlaced}; expected 8 bits, RGB or RGBA, none.")
    channels = 3 if colour == 2 else 4
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    pixels = np.zeros((height + 1, width + 1, channels), np.int32)  # a row above and a column before, of zeros
    for row, line in enumerate(lines, 1):
        pixels[row, 1:] = _unfiltered(int(line[0]), line[1:].reshape(width, channels).astype(np.int32), pixels[row - 1])
    return pixels[1:, 1:, :3].astype(np.uint8)


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray) -> np.ndarray:
    """One row without its filter; `above` is the row above with a pixel of zeros before it."""
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, axis=0) % 256
    if kind == 2:
        return (line + above[1:]) % 256
    before, made = np.zeros(line.shape[1], np.int32), np.empty_like(line)
    for column, value in enumerate(line):
        up, corner = above[column + 1], above[column]
        if kind == 3:
            guess = (before + up) // 2
        else:
            way = before + up - corner
            far = np.abs(np.stack((before, up, corner)) - way)
            guess = np.choose(far.argmin(axis=0), (before, up, corner))
        before = made[column] = (value + guess) % 256
    return made


def written(pixels: np.ndarray, colours: int = 96) -> bytes:
    """A PNG with a palette: each pixel has the colour of it that is nearest."""
    height, width, _ = pixels.shape
    there, where, often = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    palette, nearest = _palette(there.astype(np.int64), often, colours)
    indices = nearest[where.reshape(-1)].reshape(height, width).astype(np.uint8)
    lines = np.concatenate((np.zeros((height, 1), np.uint8), indices), axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", palette.astype(np.uint8).tobytes()), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return HEAD + b"".join(_chunk(*one) for one in parts)


def _palette(there: np.ndarray, often: np.ndarray, colours: int) -> tuple[np.ndarray, np.ndarray]:
    """So many of the colours that are there, and for each colour the nearest of them: one after the other that which is furthest from those before,
    squared and times the root of its pixels, so that a few pixels of another hue have a colour too."""
    chosen, far, nearest = [int(often.argmax())], np.full(len(there), np.iinfo(np.int64).max), np.zeros(len(there), np.int64)
    while True:
        way = ((there - there[chosen[-1]]) ** 2).sum(axis=1)
        nearest[way < far] = len(chosen) - 1
        far = np.minimum(far, way)
        if len(chosen) == colours or not far.any():
            return there[chosen], nearest
        chosen.append(int((far * np.sqrt(often)).argmax()))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
