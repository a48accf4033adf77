"""Makes a picture of the docs small: a PNG of at most 256 colours, of which such a page has hardly more."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

COLOURS = 256


def small(file: Path) -> None:
    """Write a PNG of eight bits a channel again, with a palette: its colours, or of more the most frequent ones."""
    pixels = _pixels(file.read_bytes())
    height, width, _ = pixels.shape
    codes = pixels[..., 0].astype(np.uint32) << 16 | pixels[..., 1].astype(np.uint32) << 8 | pixels[..., 2]
    known, where, counts = np.unique(codes.ravel(), return_inverse=True, return_counts=True)
    kept = known[np.sort(np.argsort(-counts, kind="stable")[:COLOURS])]
    palette = np.stack([kept >> 16 & 255, kept >> 8 & 255, kept & 255], axis=1).astype(np.int32)
    wanted = np.stack([known >> 16 & 255, known >> 8 & 255, known & 255], axis=1).astype(np.int32)
    nearest = np.array([np.argmin(((palette - colour) ** 2).sum(axis=1)) for colour in wanted], np.uint8)
    rows = nearest[where.ravel()].reshape(height, width)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    ]
    text = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + text)


def _pixels(png: bytes) -> np.ndarray:
    """The pixels of a PNG as Chromium writes it: eight bits a channel, not interlaced."""
    place, packed = 8, b""
    width = height = channels = 0
    while place < len(png):
        (length,), kind = struct.unpack(">I", png[place : place + 4]), png[place + 4 : place + 8]
        data = png[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", data[:10])
            assert depth == 8 and colour in (2, 6), (depth, colour)
            channels = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            packed += data
        place += 12 + length
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    found = np.zeros((height, width * channels), np.uint8)
    before = np.zeros(width * channels, np.uint8)
    for row, line in enumerate(lines):
        before = found[row] = _unfiltered(int(line[0]), line[1:], before, channels)
    return found.reshape(height, width, channels)[..., :3]


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray, size: int) -> np.ndarray:
    """One row of PNG's filters: none, left, above, mean, Paeth."""
    if kind == 0:
        return line
    if kind == 2:
        return line + above
    if kind == 1:
        return np.cumsum(line.reshape(-1, size), axis=0, dtype=np.uint8).ravel()
    done = bytearray(len(line))
    source, up = line.tolist(), above.tolist()
    for index, value in enumerate(source):
        a, b = done[index - size] if index >= size else 0, up[index]
        c = up[index - size] if index >= size else 0
        if kind == 3:
            guess = (a + b) // 2
        else:
            p = a + b - c
            pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
            guess = a if pa <= pb and pa <= pc else b if pb <= pc else c
        done[index] = (value + guess) & 255
    return np.frombuffer(bytes(done), np.uint8)
